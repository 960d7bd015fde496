"""The curves of a training run."""

import json
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.visualization.figures import labeled_axes, new_figure, saved

if TYPE_CHECKING:  # takes longer to import than everything else here
    from matplotlib.figure import Figure


def plot_learning_rate(schedule: Callable[[int], Any], steps: int, path: pathlib.Path | None = None) -> "Figure":
    """The learning rate against the step, for `steps` steps from 0.

    Raises:
      UserError: `path` cannot be written.
    """
    shown = np.unique(np.linspace(0, max(steps - 1, 0), 400).round().astype(int))
    figure = new_figure(6, 3)
    axes = labeled_axes(figure, 111, "learning rate")
    axes.plot(shown, [float(schedule(int(step))) for step in shown], color="C0")
    axes.set_ylim(bottom=0)
    return saved(figure, path)


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
    figure = new_figure(10, 3.4)
    for position, (name, title) in enumerate({"loss": "loss", "mean_iou": "mean IoU"}.items()):
        axes = labeled_axes(figure, 121 + position, title)
        for kind, style in (("training", {"color": "C0"}), ("evaluation", {"color": "C1", "marker": "o"})):
            points = [(step, values[name]) for step, values in series[kind] if values.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=kind, **style)
        if axes.lines:
            axes.legend(frameon=False)
        axes.set_ylim(bottom=0)
    return saved(figure, path)
