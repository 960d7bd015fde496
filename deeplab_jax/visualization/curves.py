"""Plots of a training run."""

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.files import parse_json
from deeplab_jax.visualization.figures import new_figure, save_figure

if TYPE_CHECKING:  # matplotlib takes long to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_learning_rate(schedule: Callable[[int], Any], steps: int, path: pathlib.Path | None = None) -> "Figure":
    """Plots the learning rate over the first `steps` steps.

    Args:
      schedule: learning rate of a step, counted from 0.
      steps: number of steps.
      path: file to save the figure to; its suffix is the format.

    Returns:
      The figure. Notebooks display it.

    Raises:
      UserError: `path` cannot be written.
    """
    shown = np.unique(np.linspace(0, max(steps - 1, 0), 400).round().astype(int))
    figure = new_figure(6, 3)
    axes = _add_axes(figure, 111, "learning rate")
    axes.plot(shown, [float(schedule(int(step))) for step in shown], color="C0")
    axes.set_ylim(bottom=0)
    return save_figure(figure, path)


def plot_curves(metrics_jsonl: pathlib.Path, path: pathlib.Path | None = None) -> "Figure":
    """Plots loss and mean IoU of training and evaluation over the steps.

    Reports of training that cover fewer steps than others, because an evaluation ended them, are joined with the next
    ones, and the last one with the one before: a mean over fewer steps is noisier.

    Args:
      metrics_jsonl: `metrics.jsonl` of a workdir.
      path: file to save the figure to; its suffix is the format.

    Returns:
      The figure. Notebooks display it.

    Raises:
      UserError: `metrics_jsonl` does not exist or is damaged, or `path` cannot be written.
    """
    if not metrics_jsonl.is_file():
        raise UserError(f"{metrics_jsonl} does not exist; `deeplab-jax train` writes it to the workdir")
    lines = [
        parse_json(line, f"{metrics_jsonl}, line {number}")
        for number, line in enumerate(metrics_jsonl.read_bytes().splitlines(), start=1)
    ]
    series = {
        "training": [(line["step"], line) for line in lines if "eval" not in line],
        "evaluation": [(line["step"], line["eval"]) for line in lines if "eval" in line],
    }
    figure = new_figure(10, 3.4)
    for position, (name, title) in enumerate({"loss": "loss", "mean_iou": "mean IoU"}.items()):
        axes = _add_axes(figure, 121 + position, title)
        for kind, style in (("training", {"color": "C0"}), ("evaluation", {"color": "C1", "marker": "o"})):
            points = [(step, values.get(name)) for step, values in series[kind]]
            if kind == "training":
                points = _join_short_windows(points)
            points = [(step, value) for step, value in points if value is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=kind, **style)
        if axes.lines:
            axes.legend(frameon=False)
        axes.set_ylim(bottom=0)
    return save_figure(figure, path)


def _join_short_windows(points: list[tuple[int, float | None]]) -> list[tuple[int, float | None]]:
    """Returns means over windows of as many steps as the longest one has, or more; None where there is no value.

    Reports at the end that are too few for a window belong to the last one, so that the curve ends with the run.
    """
    lengths = [step - start for start, (step, _) in zip([0, *(step for step, _ in points)], points, strict=False)]
    windows = [[]]
    for length, (step, value) in zip(lengths, points, strict=True):
        if sum(steps for _, steps, _ in windows[-1]) >= max(lengths):
            windows.append([])
        windows[-1].append((step, length, value))
    if len(windows) > 1 and sum(steps for _, steps, _ in windows[-1]) < max(lengths):
        windows[-2:] = [windows[-2] + windows[-1]]
    return [(window[-1][0], _mean(window)) for window in windows if window]


def _mean(window: list[tuple[int, int, float | None]]) -> float | None:
    """Returns the mean of values that are means over some steps each; None if there is none."""
    known = [(steps, value) for _, steps, value in window if value is not None]
    total = sum(steps for steps, _ in known)
    return sum(steps * value for steps, value in known) / total if total else None


def _add_axes(figure: "Figure", position: int, label: str) -> "Axes":
    axes = figure.add_subplot(position)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("constrained")
    return axes
