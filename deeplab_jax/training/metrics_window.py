"""What a training knows of its steps: the means of a logging window, and warnings of what goes wrong in it."""

import pathlib
from typing import Any

import jax
import numpy as np
from rich.console import Console

from deeplab_jax.errors import UserError
from deeplab_jax.evaluation import metrics
from deeplab_jax.labels import LabelSet
from deeplab_jax.training import nonfinite
from deeplab_jax.workdir import metrics_log

_MOST_SKIPPED = 10  # steps in a row that are not finite: no batch is to blame then, and nothing is learned any more


class TrainLog:
    """Sums the steps' reports; reads each one step late, so that the host never waits on a step just dispatched.

    Args:
      writer: gets the means of each window.
      labels: of the network's classes.
      policy: `config.train.nonfinite`: `stop` raises at a step that is not finite, `skip` warns and leaves it out.
      folder: where batches of steps that are not finite are saved.
      console: gets the warnings; None is silent.
    """

    def __init__(
        self,
        writer: metrics_log.Writer,
        label_set: LabelSet,
        *,
        policy: str,
        folder: pathlib.Path,
        console: Console | None,
    ):
        self._writer, self._labels, self._policy, self._folder = writer, label_set, policy, folder
        self._console = console
        self._totals = metrics.Totals(label_set.num_classes)
        self._counts = dict.fromkeys(("skipped_steps", "unreadable_examples"), 0)
        self._unread, self._window_end = None, None
        self._skipped_in_a_row, self._collapsed, self._warned = 0, False, set()

    def add(self, step: int, report: dict[str, jax.Array], batch: dict[str, np.ndarray]) -> None:
        """Takes the report of a step just dispatched and its batch, and reads the report of the step before.

        Raises:
          UserError: that step was not finite, and the policy is `stop`, or it was one of many.
        """
        self.catch_up()
        self._unread = step, report, batch
        for message in filter(None, batch["unreadable"].tolist()):
            self._counts["unreadable_examples"] += 1
            if message not in self._warned:
                self._warned.add(message)
                self._warn(f"{message}; another example takes its place")

    def end_window(self, step: int) -> None:
        """Has the means since the last window's end written when the report of `step`, the last added, is read."""
        self._window_end = step

    def catch_up(self) -> None:
        """Reads the report that is not read yet; waits for its step.

        Raises:
          UserError: as `add`.
        """
        if self._unread is None:
            return
        (step, report, batch), self._unread = self._unread, None
        if nonfinite.is_finite(report):
            self._skipped_in_a_row = 0
            self._totals.add(report)
        else:
            self._take_nonfinite(step, report, batch)
        if self._window_end is not None:
            self._write_window(report)

    def open_window(self) -> dict[str, Any]:
        """What is summed and not written yet, for `resume`; all reports must have been read."""
        return {"totals": self._totals.to_json(), "counts": dict(self._counts)}

    def resume(self, window: dict[str, Any]) -> None:
        """Goes on in a window that another process has begun."""
        self._totals.from_json(window["totals"])
        self._counts = dict(window["counts"])

    def _write_window(self, report: dict[str, jax.Array]) -> None:
        scores = self._totals.scores(self._labels.class_names)
        values = {name: scores[name] for name in ("loss", "mean_iou", "pixel_accuracy")}
        values |= {name: float(report[name]) for name in ("learning_rate", "gradient_norm")}
        values |= {name: count for name, count in self._counts.items() if count}
        self._writer.write_train(self._window_end, values)
        self._warn_of_collapse(self._window_end)
        self._totals.reset()
        self._counts = dict.fromkeys(self._counts, 0)
        self._window_end = None

    def _take_nonfinite(self, step: int, report: dict[str, jax.Array], batch: dict[str, np.ndarray]) -> None:
        text = nonfinite.describe(step, report, batch, nonfinite.save_batch(self._folder, step, batch))
        self._skipped_in_a_row += 1
        if self._policy == "stop":
            raise UserError(
                f"{text}; the checkpoints before it are whole: lower optimizer.learning_rate, look at the examples, or "
                "continue with --config.train.nonfinite=skip"
            )
        if self._skipped_in_a_row == _MOST_SKIPPED:
            raise UserError(f"{text}; so were the {_MOST_SKIPPED - 1} steps before it: lower optimizer.learning_rate")
        self._counts["skipped_steps"] += 1
        self._warn(f"{text}; it is skipped")

    def _warn_of_collapse(self, step: int) -> None:
        """Once each time that a window's predictions become all one class, while its truth has several."""
        truth, predicted = (self._totals.confusion.sum(axis=axis) > 0 for axis in (1, 0))
        collapsed = predicted.sum() == 1 and truth.sum() > 1
        if collapsed and not self._collapsed:
            name = self._labels.class_names[int(np.argmax(predicted))]
            self._warn(
                f"step {step}: every pixel since the last line is predicted as {name}; the network has collapsed"
            )
        self._collapsed = collapsed

    def _warn(self, text: str) -> None:
        if self._console is not None:
            self._console.print(f"warning: {text}", soft_wrap=True, highlight=False, markup=False)
