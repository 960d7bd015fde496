"""Label maps made visible: colours, overlays, legends and galleries, and the curves of a training run."""

import dataclasses
import functools
import io
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from deeplab_jax.errors import UserError
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import IGNORE_LABEL, VOC, VOID_COLOR, LabelSet

if TYPE_CHECKING:  # takes longer to import than everything else here
    from matplotlib.figure import Figure

_MAX_FIGURE_WIDTH = 16.0  # inches; a notebook shows a wider figure shrunk, with its text too small to read
_GAP, _CELL_GAP = 0.06, 0.2  # inches between the panels of a cell, and between cells
_TEXT_HEIGHT = 0.25  # inches


def colorize(label_map: UInt8[np.ndarray, "height width"], labels: LabelSet) -> UInt8[np.ndarray, "height width 3"]:
    """RGB of a label map in the palette of its data set; void has a border colour, unused ids are black."""
    # Ten times as fast as an array of colours that is indexed by an array of labels.
    return cv2.applyColorMap(np.ascontiguousarray(label_map), labels.color_table().reshape(256, 1, 3))


def overlay(
    image: UInt8[np.ndarray, "height width 3"],
    label_map: UInt8[np.ndarray, "height width"],
    labels: LabelSet,
    *,
    opacity: int | float = 0.6,
) -> UInt8[np.ndarray, "height width 3"]:
    """An RGB picture tinted with its classes; void pixels are opaque, a class 0 named "background" is not tinted.

    Args:
      image: RGB of range 0-255.
      label_map: of the same height and width.
      labels: its names and colours.
      opacity: of the tint, 0 to 1.
    """
    tinted = cv2.addWeighted(image, 1 - opacity, colorize(label_map, labels), opacity, 0)
    if labels.class_names[0] == "background":
        tinted = cv2.copyTo(image, (label_map == 0).view(np.uint8), tinted)
    void = label_map == IGNORE_LABEL
    if void.any():
        tinted[void] = VOID_COLOR
    return tinted


def save_palette_png(path: pathlib.Path, label_map: UInt8[np.ndarray, "height width"], labels: LabelSet) -> None:
    """Writes a PNG of mode P whose indices are the labels, shown in the palette by every viewer (VOC's format).

    Raises:
      UserError: the file cannot be written; nothing is left half-written.
    """
    picture = Image.fromarray(label_map)
    picture.putpalette(labels.color_table().tobytes())
    _save_png(path, picture)


def save_image(path: pathlib.Path, image: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes an RGB PNG.

    Raises:
      UserError: the file cannot be written; nothing is left half-written.
    """
    _save_png(path, Image.fromarray(image))


@dataclasses.dataclass(frozen=True)
class ClassShare:
    """A class in a label map.

    Attributes:
      label: its id.
      name: of the class; "void" for pixels of none.
      fraction: of the pixels, above 0, at most 1.
    """

    label: int
    name: str
    fraction: float

    @property
    def percent(self) -> str:
        """Such as `34.2%` or `<0.1%`."""
        return f"{100 * self.fraction:.1f}%" if self.fraction >= 0.001 else "<0.1%"


def class_shares(label_map: UInt8[np.ndarray, "height width"], labels: LabelSet) -> list[ClassShare]:
    """The classes in a label map, the largest first.

    Raises:
      ValueError: a label that is no class.
    """
    counts = sorted(_present([label_map], labels).items(), key=lambda item: -item[1])
    return [ClassShare(label, _name(label, labels), count / label_map.size) for label, count in counts]


def add_legend(
    image: UInt8[np.ndarray, "height width 3"], label_map: UInt8[np.ndarray, "map_height map_width"], labels: LabelSet
) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Puts a strip under a picture: colour, name and share of the pixels of each class in it, the largest first.

    The text grows with the picture but never gets smaller than 13 pixels: a tiny picture is widened with white.

    Raises:
      ValueError: a label that is no class.
    """
    height, width = image.shape[:2]
    size = max(13, round(math.sqrt(height * width) / 36))
    font = ImageFont.load_default(size)
    pad, line = size // 2, round(1.6 * size)
    entries = []
    for share in class_shares(label_map, labels):
        text = f"{share.name} {share.percent}"
        entries.append((share.label, text, size + pad + math.ceil(font.getlength(text)) + 2 * pad))
    out_width = max(width, pad + max(entry_width for *_, entry_width in entries))

    positions, x, y = [], pad, pad // 2  # words of a paragraph: left to right, then the next line
    for *_, entry_width in entries:
        if x + entry_width > out_width and x > pad:
            x, y = pad, y + line
        positions.append((x, y))
        x += entry_width

    picture = Image.new("RGB", (out_width, height + y + line + pad // 2), "white")
    picture.paste(Image.fromarray(image), ((out_width - width) // 2, 0))
    draw = ImageDraw.Draw(picture)
    colors = labels.color_table()
    for (label, text, _), (x, y) in zip(entries, positions, strict=True):
        top = height + y + (line - size) // 2
        draw.rectangle((x, top, x + size, top + size), fill=tuple(colors[label].tolist()), outline=(128, 128, 128))
        draw.text((x + size + pad, height + y + line // 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(picture)


def gallery_strip(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    truths: Sequence[UInt8[np.ndarray, "_ _"]],
    predictions: Sequence[UInt8[np.ndarray, "_ _"]],
    labels: LabelSet,
    *,
    height: int = 160,
) -> UInt8[np.ndarray, "strip_height strip_width 3"]:
    """Rows of picture, truth and prediction, each `height` pixels high, as one RGB image on white."""
    gap = 4
    rows = []
    for image, truth, prediction in zip(images, truths, predictions, strict=True):
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        cells = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)]
        for label_map in (truth, prediction):
            nearest = cv2.resize(label_map, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            cells.append(colorize(nearest, labels))
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
    labels: LabelSet = VOC,
    rows: int | None = None,
    cols: int | None = None,
    scale: int | float = 3,
    value_range: tuple[int | float, int | float] = (0, 255),
    path: pathlib.Path | None = None,
) -> "Figure":
    """A grid of cells, each a picture with its true and its predicted mask beside it, over a legend of the classes.

    Masks have the colours of their data set, void that of a border. The legend names the classes that are there.

    Args:
      images: RGB pictures, an array (pictures, height, width, 3) or a list of pictures of differing sizes.
      y_true: true class ids of each pixel: (pictures, height, width), the same with a last axis of 1, or a list.
      y_pred: predicted class ids, likewise.
      labels: names and colours.
      rows: of the grid; default: as many as the pictures need.
      cols: of the grid; default: what makes a page.
      scale: height of a row in inches; less where the figure would get wider than 16 inches.
      value_range: darkest and brightest value of `images`.
      path: where to save the figure; its suffix is the format, PNG without one.

    Returns:
      The figure, which notebooks show; it does not touch pyplot's state.

    Raises:
      ValueError: shapes or values that are no pictures or class ids, naming the argument.
      UserError: `path` cannot be written.
    """
    pictures = [_as_picture(image, value_range) for image in images]
    if not pictures:
        raise ValueError("images is empty")
    panels = {"picture": pictures}
    for name, title, masks in (("y_true", "truth", y_true), ("y_pred", "prediction", y_pred)):
        if masks is not None:
            panels[title] = _as_label_maps(name, masks, pictures, labels)

    # A panel is `scale` inches high for the usual shape of picture; all are equally wide, so that columns line up.
    aspect = float(np.median([picture.shape[1] / picture.shape[0] for picture in pictures]))
    if cols is None and rows is None:
        cols = _page_columns(len(pictures), len(panels), scale, aspect)
    cols = math.ceil(len(pictures) / rows) if cols is None else cols
    rows = math.ceil(len(pictures) / cols) if rows is None else rows
    panels = {title: contents[: rows * cols] for title, contents in panels.items()}
    width = _panel_width(cols, len(panels), scale * aspect)
    figure = _draw_grid(panels, cols, width, width / aspect, labels)
    return _saved(figure, path)


def plot_learning_rate(schedule: Callable[[int], Any], steps: int, path: pathlib.Path | None = None) -> "Figure":
    """The learning rate against the step, for `steps` steps from 0.

    Raises:
      UserError: `path` cannot be written.
    """
    shown = np.unique(np.linspace(0, max(steps - 1, 0), 400).round().astype(int))
    figure = _figure(6, 3)
    axes = _labelled_axes(figure, 111, "learning rate")
    axes.plot(shown, [float(schedule(int(step))) for step in shown], color="C0")
    axes.set_ylim(bottom=0)
    return _saved(figure, path)


def plot_curves(metrics_jsonl: pathlib.Path, path: pathlib.Path | None = None) -> "Figure":
    """Loss and mean IoU of training and evaluation against the step, from the file that `writers.Writer` writes.

    Raises:
      UserError: the file is not there, or `path` cannot be written.
    """
    if not metrics_jsonl.is_file():
        raise UserError(f"{metrics_jsonl} does not exist; `deeplab-jax train` writes it into its workdir")
    lines = [json.loads(line) for line in metrics_jsonl.read_text(encoding="utf-8").splitlines()]
    series = {
        "training": [(line["step"], line) for line in lines if "eval" not in line],
        "evaluation": [(line["step"], line["eval"]) for line in lines if "eval" in line],
    }
    figure = _figure(10, 3.4)
    for position, (name, title) in enumerate({"loss": "loss", "mean_iou": "mean IoU"}.items()):
        axes = _labelled_axes(figure, 121 + position, title)
        for kind, style in (("training", {"color": "C0"}), ("evaluation", {"color": "C1", "marker": "o"})):
            points = [(step, values[name]) for step, values in series[kind] if values.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=kind, **style)
        if axes.lines:
            axes.legend(frameon=False)
        axes.set_ylim(bottom=0)
    return _saved(figure, path)


def _present(label_maps: Iterable[np.ndarray], labels: LabelSet) -> dict[int, int]:
    """Pixels of each label that occurs."""
    counts = sum((np.bincount(label_map.ravel(), minlength=256) for label_map in label_maps), np.zeros(256, np.int64))
    for label in np.flatnonzero(counts):
        if labels.num_classes <= label < IGNORE_LABEL:
            raise ValueError(f"label {label} is none of the {labels.num_classes} classes; pass the right labels")
    return {int(label): int(counts[label]) for label in np.flatnonzero(counts)}


def _name(label: int, labels: LabelSet) -> str:
    return "void" if label == IGNORE_LABEL else labels.class_names[label]


def _as_picture(image: Any, value_range: tuple[int | float, int | float]) -> UInt8[np.ndarray, "height width 3"]:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"images must be RGB of shape (height, width, 3), not {image.shape}")
    if image.dtype == np.uint8 and tuple(value_range) == (0, 255):
        return image
    low, high = value_range
    return np.clip(np.round((image.astype(np.float32) - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def _as_label_maps(name: str, masks: Any, pictures: list[np.ndarray], labels: LabelSet) -> list[np.ndarray]:
    masks = [np.asarray(mask) for mask in masks]
    if len(masks) != len(pictures):
        raise ValueError(f"{name} has {len(masks)} masks for {len(pictures)} images")
    label_maps = []
    for mask, picture in zip(masks, pictures, strict=True):
        if mask.ndim == 3 and mask.shape[-1] > 1:
            raise ValueError(
                f"{name} has masks of shape {mask.shape}: one-hot or scores; pass class ids, their argmax over the "
                "last axis"
            )
        mask = mask[..., 0] if mask.ndim == 3 else mask
        if mask.shape != picture.shape[:2]:
            raise ValueError(f"{name} has a mask of shape {mask.shape} for an image of shape {picture.shape}")
        if not np.all((mask >= 0) & (mask <= IGNORE_LABEL) & (mask == np.floor(mask))):
            raise ValueError(f"{name} holds values that are no class ids from 0 to {IGNORE_LABEL}")
        label_maps.append(mask.astype(np.uint8))
    _present(label_maps, labels)
    return label_maps


def _panel_width(cols: int, panels: int, width: float) -> float:
    """Inches: `width`, or what fits on a page of `cols` cells of `panels` panels."""
    gaps = cols * (panels - 1) * _GAP + (cols - 1) * _CELL_GAP
    return min(width, (_MAX_FIGURE_WIDTH - gaps) / (cols * panels))


def _page_columns(pictures: int, panels: int, scale: int | float, aspect: float) -> int:
    """As many columns as fit at full scale, or more where the figure would be a long ribbon."""
    cols = max(1, min(pictures, int((_MAX_FIGURE_WIDTH + _GAP) / (panels * (scale * aspect + _GAP) + _CELL_GAP))))
    while cols < pictures:
        width = _panel_width(cols, panels, scale * aspect)
        if math.ceil(pictures / cols) * width / aspect <= 1.3 * cols * panels * width:
            break
        cols += 1
    return cols


def _draw_grid(
    panels: dict[str, list[np.ndarray]], cols: int, width: float, max_height: float, labels: LabelSet
) -> "Figure":
    """Panels of one width in inches, rows as high as their highest picture (at most `max_height`), and the legend."""
    heights = [min(max_height, width * picture.shape[0] / picture.shape[1]) for picture in panels["picture"]]
    row_heights = [max(heights[start : start + cols]) for start in range(0, len(heights), cols)]
    cell_width = len(panels) * (width + _GAP) - _GAP
    figure_width = min(cols, len(heights)) * (cell_width + _CELL_GAP) - _CELL_GAP
    label_maps = [label_map for title, maps in panels.items() if title != "picture" for label_map in maps]
    present = sorted(_present(label_maps, labels))
    titles_height = _TEXT_HEIGHT if label_maps else 0.0
    longest = max((len(_name(label, labels)) for label in present), default=0)
    entries_per_line = max(1, int(figure_width / (0.5 + 0.075 * longest)))  # inches: a patch, and about a letter
    legend_lines = math.ceil(len(present) / entries_per_line)
    legend_height = legend_lines * _TEXT_HEIGHT
    figure_height = titles_height + sum(row_heights) + (len(row_heights) - 1) * _GAP + legend_height
    figure = _figure(figure_width, figure_height)

    for index in range(len(heights)):
        row, col = divmod(index, cols)
        top = figure_height - titles_height - sum(row_heights[:row]) - row * _GAP
        for position, (title, contents) in enumerate(panels.items()):
            left = col * (cell_width + _CELL_GAP) + position * (width + _GAP)
            box = (left, top - row_heights[row], width, row_heights[row])
            axes = figure.add_axes([x / size for x, size in zip(box, 2 * (figure_width, figure_height), strict=True)])
            axes.set_axis_off()
            axes.set_anchor("N")
            content = contents[index] if title == "picture" else colorize(contents[index], labels)
            axes.imshow(content, interpolation="antialiased" if title == "picture" else "nearest")
            if row == 0 and label_maps:
                x, y = (left + width / 2) / figure_width, (top + 0.06) / figure_height
                figure.text(x, y, title, ha="center", va="bottom", fontsize=10)
    if present:
        _draw_legend(figure, present, labels, columns=math.ceil(len(present) / legend_lines))
    return figure


def _draw_legend(figure: "Figure", present: Sequence[int], labels: LabelSet, columns: int) -> None:
    from matplotlib.patches import Patch

    colors = labels.color_table() / 255
    figure.legend(
        handles=[Patch(facecolor=colors[label], edgecolor="grey", linewidth=0.5) for label in present],
        labels=[_name(label, labels) for label in present],
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


def _labelled_axes(figure: "Figure", position: int, title: str) -> Any:
    axes = figure.add_subplot(position)
    axes.set_xlabel("step")
    axes.set_ylabel(title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("constrained")
    return axes


@functools.cache
def _figure_class() -> type:
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that notebooks show without pyplot, which keeps every figure alive in a global list."""

        def _repr_png_(self) -> bytes:
            return _rendered(self, "png")

    return NotebookFigure


def _figure(width: int | float, height: int | float) -> "Figure":
    """Inches; 100 pixels each."""
    return _figure_class()(figsize=(width, height), dpi=100, facecolor="white")


def _rendered(figure: "Figure", kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def _saved(figure: "Figure", path: pathlib.Path | None) -> "Figure":
    if path is not None:
        write_atomically(path, _rendered(figure, path.suffix.lstrip(".") or "png"))
    return figure


def _save_png(path: pathlib.Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
