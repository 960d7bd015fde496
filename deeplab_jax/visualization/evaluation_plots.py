"""Plots of an evaluation: confusion matrix, trimap curves and reliability diagram."""

import itertools
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from deeplab_jax.labels import LabelSet
from deeplab_jax.visualization.figures import new_figure, save_figure
from deeplab_jax.visualization.overlays import class_name

if TYPE_CHECKING:  # matplotlib takes long to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 160  # sharp on screens with two device pixels per pixel
_MOST_NUMBERED = 25  # classes; a larger matrix has no room for numbers


def plot_confusion_matrix(
    confusion: Int64[np.ndarray, "classes classes"], label_set: LabelSet, path: pathlib.Path | None = None
) -> "Figure":
    """Plots a confusion matrix as percentages of the pixels of each true class. A class without pixels has a gray row.

    Args:
      confusion: pixels by true class (rows) and predicted class (columns).
      label_set: names of the classes.
      path: file to save the figure to; its suffix is the format.

    Returns:
      The figure. Notebooks display it.

    Raises:
      UserError: `path` cannot be written.
    """
    truth = confusion.sum(axis=1, keepdims=True)
    percent = np.divide(100 * confusion, truth, out=np.full(confusion.shape, np.nan), where=truth > 0)
    count = len(confusion)
    has_numbers = count <= _MOST_NUMBERED
    names = [class_name(label, label_set) for label in range(count)]
    size = max(3.0, (0.36 if has_numbers else 0.13) * count)
    margin = 0.5 + 0.075 * min(40, max(map(len, names)))
    figure = new_figure(size + margin + 0.8, size + margin, dpi=_DPI)
    figure.set_layout_engine("compressed")  # the axes are square
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    drawn = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    fontsize = 8 if has_numbers else 5
    for ticks in (
        axes.set_xticks(range(count), names, rotation=90, fontsize=fontsize),
        axes.set_yticks(range(count), names, fontsize=fontsize),
    ):
        for tick in ticks:
            tick.label1.set_parse_math(False)  # a name may contain a dollar sign
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    if has_numbers:
        for row, column in zip(*np.nonzero(np.nan_to_num(percent) >= 0.5), strict=True):
            value = percent[row, column]
            color = "white" if value > 60 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, aspect=40)
    bar.set_label("% of the pixels of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return save_figure(figure, path)


def plot_trimap_curves(curves: Mapping[str, Mapping[str, Any]], path: pathlib.Path | None = None) -> "Figure":
    """Plots the mean IoU near boundaries against the width of the trimap, one line per curve.

    Args:
      curves: by name, `widths` in pixels and the `mean_iou` at each, such as the entries of `trimap` in the scores of
        `deeplab_jax.evaluation.details.Details.scores`.
      path: file to save the figure to; its suffix is the format.

    Returns:
      The figure. Notebooks display it.

    Raises:
      UserError: `path` cannot be written.
    """
    figure = new_figure(6, 3.8, dpi=_DPI)
    axes = _add_axes(figure)
    styles = itertools.cycle(("-", "--", ":", "-."))  # curves may coincide
    for (name, curve), style in zip(curves.items(), styles, strict=False):
        percent = [100 * value for value in curve["mean_iou"]]
        axes.plot(curve["widths"], percent, label=name, linestyle=style, linewidth=1.8)
    if axes.lines:
        legend = axes.legend(frameon=False, loc="lower right")
        for text in legend.get_texts():
            text.set_parse_math(False)
    axes.set_xlim(left=0)
    axes.set_xlabel("trimap width (pixels)")
    axes.set_ylabel("mean IoU (%)")
    return save_figure(figure, path)


def plot_reliability(calibration: Mapping[str, Any], path: pathlib.Path | None = None) -> "Figure":
    """Plots accuracy against confidence, and the share of the pixels in each bin.

    Args:
      calibration: `deeplab_jax.evaluation.calibration.CalibrationCounts.scores`.
      path: file to save the figure to; its suffix is the format.

    Returns:
      The figure. Notebooks display it.

    Raises:
      UserError: `path` cannot be written.
    """
    pixels, count = np.array(calibration["pixels"]), len(calibration["pixels"])
    filled = np.flatnonzero(pixels)
    centers, width = (np.arange(count) + 0.5) / count, 1 / count
    accuracy = np.array([calibration["accuracy"][i] for i in filled])
    confidence = np.array([calibration["confidence"][i] for i in filled])
    figure = new_figure(6, 3.8, dpi=_DPI)
    axes = _add_axes(figure)
    axes.bar(centers, pixels / max(1, pixels.sum()), width, color="0.85", label="share of the pixels")
    axes.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="perfect calibration")
    axes.plot(confidence, accuracy, color="C0", marker="o", markersize=4, linewidth=1.8, label="accuracy")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy, share of the pixels")
    axes.legend(frameon=False, loc="upper left")
    return save_figure(figure, path)


def _add_axes(figure: "Figure") -> "Axes":
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes
