"""Galleries of images with their masks."""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from jaxtyping import UInt8

from deeplab_jax.labels import IGNORE_LABEL, VOC, LabelSet
from deeplab_jax.visualization.figures import new_figure, save_figure
from deeplab_jax.visualization.overlays import class_name, colorize, count_labels

if TYPE_CHECKING:  # matplotlib takes long to import
    from matplotlib.figure import Figure

_MAX_FIGURE_WIDTH = 16.0  # inches; notebooks shrink wider figures until their text is unreadable
_GAP, _CELL_GAP = 0.06, 0.2  # inches between the panels of a cell, and between cells
_TEXT_HEIGHT = 0.25  # inches


def gallery_strip(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    truths: Sequence[UInt8[np.ndarray, "_ _"]],
    predictions: Sequence[UInt8[np.ndarray, "_ _"]],
    label_set: LabelSet,
    *,
    height: int = 160,
) -> UInt8[np.ndarray, "strip_height strip_width 3"]:
    """Draws rows of image, true mask and predicted mask, each `height` pixels high, as one RGB image."""
    gap = 4
    rows = []
    for image, truth, prediction in zip(images, truths, predictions, strict=True):
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        cells = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)]
        for label in (truth, prediction):
            nearest = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            cells.append(colorize(nearest, label_set))
        rows.append(cells)
    widest = max(cells[0].shape[1] for cells in rows)
    strip = np.full((len(rows) * (height + gap) - gap, 3 * (widest + gap) - gap, 3), 255, np.uint8)
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            top, left = row * (height + gap), column * (widest + gap)
            strip[top : top + height, left : left + cell.shape[1]] = cell
    return strip


def plot_segmentation_mask_gallery(
    images: Any,
    y_true: Any = None,
    y_pred: Any = None,
    *,
    label_set: LabelSet = VOC,
    rows: int | None = None,
    cols: int | None = None,
    scale: int | float = 3,
    value_range: tuple[int | float, int | float] = (0, 255),
    path: pathlib.Path | None = None,
) -> "Figure":
    """Plots a grid of images, each with its true and predicted mask next to it, and a legend of the classes.

    Args:
      images: RGB images: an array (images, height, width, 3), or a list of images of any sizes.
      y_true: true class ids: an array (images, height, width), optionally with a last axis of 1, or a list.
      y_pred: predicted class ids, in the same form.
      label_set: names and colors of the classes.
      rows: rows of the grid (default: as many as needed).
      cols: columns of the grid (default: as many as make a well-proportioned page).
      scale: height of a row in inches; reduced if the figure would be wider than 16 inches.
      value_range: darkest and brightest value of `images`.
      path: file to save the figure to; its suffix is the format, PNG without one.

    Returns:
      The figure. Notebooks display it. It does not touch pyplot's state.

    Raises:
      ValueError: an argument does not contain images or class ids; the message names it.
      UserError: `path` cannot be written.
    """
    arrays = [_as_image(image, value_range) for image in images]
    if not arrays:
        raise ValueError("images is empty")
    panels = {"image": arrays}
    for name, title, masks in (("y_true", "truth", y_true), ("y_pred", "prediction", y_pred)):
        if masks is not None:
            panels[title] = _as_labels(name, masks, arrays, label_set)

    # A panel is `scale` inches high for the median aspect ratio. All have the same width, so that columns line up.
    aspect = float(np.median([array.shape[1] / array.shape[0] for array in arrays]))
    if cols is None and rows is None:
        cols = _page_columns(len(arrays), len(panels), scale, aspect)
    cols = math.ceil(len(arrays) / rows) if cols is None else cols
    rows = math.ceil(len(arrays) / cols) if rows is None else rows
    panels = {title: contents[: rows * cols] for title, contents in panels.items()}
    width = _panel_width(cols, len(panels), scale * aspect)
    figure = _draw_grid(panels, cols, width, width / aspect, label_set)
    return save_figure(figure, path)


def _as_image(image: Any, value_range: tuple[int | float, int | float]) -> UInt8[np.ndarray, "height width 3"]:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"images must be RGB of shape (height, width, 3), not {image.shape}")
    if image.dtype == np.uint8 and tuple(value_range) == (0, 255):
        return image
    low, high = value_range
    return np.clip(np.round((image.astype(np.float32) - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def _as_labels(name: str, masks: Any, images: list[np.ndarray], label_set: LabelSet) -> list[np.ndarray]:
    masks = [np.asarray(mask) for mask in masks]
    if len(masks) != len(images):
        raise ValueError(f"{name} has {len(masks)} masks for {len(images)} images")
    labels = []
    for mask, image in zip(masks, images, strict=True):
        if mask.ndim == 3 and mask.shape[-1] > 1:
            raise ValueError(
                f"{name} has masks of shape {mask.shape}: one-hot labels or scores; pass class ids, the argmax over "
                "the last axis"
            )
        mask = mask[..., 0] if mask.ndim == 3 else mask
        if mask.shape != image.shape[:2]:
            raise ValueError(f"{name} has a mask of shape {mask.shape} for an image of shape {image.shape}")
        if not np.all((mask >= 0) & (mask <= IGNORE_LABEL) & (mask == np.floor(mask))):
            raise ValueError(f"{name} contains values that are not class ids from 0 to {IGNORE_LABEL}")
        labels.append(mask.astype(np.uint8))
    count_labels(labels, label_set)
    return labels


def _panel_width(cols: int, panels: int, width: float) -> float:
    """Returns the width of a panel in inches: `width`, or less to fit `cols` cells of `panels` panels on a page."""
    gaps = cols * (panels - 1) * _GAP + (cols - 1) * _CELL_GAP
    return min(width, (_MAX_FIGURE_WIDTH - gaps) / (cols * panels))


def _page_columns(images: int, panels: int, scale: int | float, aspect: float) -> int:
    """Returns the number of columns that fit at full scale, or more if the figure would be much taller than wide."""
    cols = max(1, min(images, int((_MAX_FIGURE_WIDTH + _GAP) / (panels * (scale * aspect + _GAP) + _CELL_GAP))))
    while cols < images:
        width = _panel_width(cols, panels, scale * aspect)
        if math.ceil(images / cols) * width / aspect <= 1.3 * cols * panels * width:
            break
        cols += 1
    return cols


def _draw_grid(
    panels: dict[str, list[np.ndarray]], cols: int, width: float, max_height: float, label_set: LabelSet
) -> "Figure":
    """Draws the legend, and panels of one width in inches in rows as high as their highest image or `max_height`."""
    heights = [min(max_height, width * image.shape[0] / image.shape[1]) for image in panels["image"]]
    row_heights = [max(heights[start : start + cols]) for start in range(0, len(heights), cols)]
    cell_width = len(panels) * (width + _GAP) - _GAP
    figure_width = min(cols, len(heights)) * (cell_width + _CELL_GAP) - _CELL_GAP
    labels = [label for title, contents in panels.items() if title != "image" for label in contents]
    present = sorted(count_labels(labels, label_set))
    titles_height = _TEXT_HEIGHT if labels else 0.0
    longest = max((len(class_name(label, label_set)) for label in present), default=0)
    entries_per_line = max(1, int(figure_width / (0.5 + 0.075 * longest)))  # inches: a color patch, and a letter
    legend_lines = math.ceil(len(present) / entries_per_line)
    legend_height = legend_lines * _TEXT_HEIGHT
    figure_height = titles_height + sum(row_heights) + (len(row_heights) - 1) * _GAP + legend_height
    figure = new_figure(figure_width, figure_height)

    for index in range(len(heights)):
        row, col = divmod(index, cols)
        top = figure_height - titles_height - sum(row_heights[:row]) - row * _GAP
        for position, (title, contents) in enumerate(panels.items()):
            left = col * (cell_width + _CELL_GAP) + position * (width + _GAP)
            box = (left, top - row_heights[row], width, row_heights[row])
            axes = figure.add_axes([x / size for x, size in zip(box, 2 * (figure_width, figure_height), strict=True)])
            axes.set_axis_off()
            axes.set_anchor("N")
            content = contents[index] if title == "image" else colorize(contents[index], label_set)
            axes.imshow(content, interpolation="antialiased" if title == "image" else "nearest")
            if row == 0 and labels:
                x, y = (left + width / 2) / figure_width, (top + 0.06) / figure_height
                figure.text(x, y, title, ha="center", va="bottom", fontsize=10)
    if present:
        _draw_legend(figure, present, label_set, columns=math.ceil(len(present) / legend_lines))
    return figure


def _draw_legend(figure: "Figure", present: Sequence[int], label_set: LabelSet, columns: int) -> None:
    from matplotlib.patches import Patch

    colors = label_set.color_table() / 255
    legend = figure.legend(
        handles=[Patch(facecolor=colors[label], edgecolor="gray", linewidth=0.5) for label in present],
        labels=[class_name(label, label_set) for label in present],
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        borderaxespad=0,
        borderpad=0,
        handlelength=1.2,
        handleheight=1.0,
        columnspacing=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may contain a dollar sign
