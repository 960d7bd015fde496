"""Means over a logging window, and warnings about what goes wrong in it."""

import logging
import pathlib
from typing import Any

import jax
import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.evaluation import metrics
from deeplab_jax.labels import LabelSet
from deeplab_jax.training import nonfinite_batch, pseudo_labels
from deeplab_jax.workdir import metrics_log

logger = logging.getLogger(__name__)

# Consecutive steps that are not finite: after this many no single batch is to blame, and nothing is learned any more.
_MAX_SKIPPED = 10


class MetricsWindow:
    """Sums the reports of steps and writes their means once per logging window.

    Reports are read one step late, so the host never waits for a step it has just dispatched.

    Args:
      writer: receives the means of each window.
      label_set: the classes of the network.
      policy: `config.train.nonfinite`: `stop` raises at a step that is not finite; `skip` warns and leaves it out.
      folder: where batches of steps that are not finite are saved.
      saved: the window of an earlier process to continue, see `to_json`.
      first_steps: number of steps in which the prediction of a single class is not reported, because most networks
        begin with one.
    """

    def __init__(
        self,
        writer: metrics_log.Writer,
        label_set: LabelSet,
        *,
        policy: str,
        folder: pathlib.Path,
        saved: dict[str, Any] | None = None,
        first_steps: int = 0,
    ):
        self._writer, self._label_set, self._policy, self._folder = writer, label_set, policy, folder
        self._unread, self._window_end, self._first_steps = None, None, first_steps
        self._consecutive_skips, self._collapsed, self._warned = 0, False, set()
        self._start_window()
        if saved is not None:
            self._totals, self._counts = metrics.Totals.from_json(saved["totals"]), dict(saved["counts"])
            self._unlabeled = dict(saved.get("unlabeled", {}))

    def add(self, step: int, report: dict[str, jax.Array], batch: dict[str, np.ndarray]) -> None:
        """Adds the report and the batch of a step just dispatched, and reads the report of the previous step.

        Raises:
          UserError: the previous step was not finite, and the policy is `stop` or too many steps were skipped.
        """
        self.catch_up()
        self._unread = step, report, batch
        for message in filter(None, batch["unreadable"].tolist()):
            self._counts["unreadable_examples"] += 1
            if message not in self._warned:
                self._warned.add(message)
                logger.warning("%s; using another example instead", message)

    def end_at(self, step: int) -> None:
        """Ends the window at `step`, the last one added. The means are written once its report is read."""
        self._window_end = step

    def catch_up(self) -> None:
        """Reads the report that is still unread. Waits for its step.

        Raises:
          UserError: see `add`.
        """
        if self._unread is None:
            return
        (step, report, batch), self._unread = self._unread, None
        if nonfinite_batch.is_finite(report):
            self._consecutive_skips = 0
            self._totals.add(report)
            for name, value in report.get("unlabeled", {}).items():
                self._unlabeled[name] = self._unlabeled.get(name, 0) + value.item()
        else:
            self._handle_nonfinite(step, report, batch)
        if self._window_end is not None:
            self._write(report)

    def to_json(self) -> dict[str, Any]:
        """Returns the sums that are not written yet. Call `catch_up` first."""
        sums = {"totals": self._totals.to_json(), "counts": dict(self._counts)}
        return sums | ({"unlabeled": dict(self._unlabeled)} if self._unlabeled else {})

    def _start_window(self) -> None:
        self._totals = metrics.Totals(self._label_set.num_classes)
        self._counts = dict.fromkeys(("skipped_steps", "unreadable_examples"), 0)
        self._unlabeled: dict[str, float] = {}
        self._window_end = None

    def _write(self, report: dict[str, jax.Array]) -> None:
        scores = self._totals.scores(self._label_set.class_names)
        values = {name: scores[name] for name in ("loss", "loss_terms", "mean_iou", "pixel_accuracy") if name in scores}
        values |= pseudo_labels.scores(self._unlabeled) if self._unlabeled else {}
        values |= {name: float(report[name]) for name in ("learning_rate", "gradient_norm")}
        values |= {name: count for name, count in self._counts.items() if count}
        self._writer.write_train(self._window_end, values)
        self._warn_of_collapse(self._window_end)
        self._start_window()

    def _handle_nonfinite(self, step: int, report: dict[str, jax.Array], batch: dict[str, np.ndarray]) -> None:
        path = nonfinite_batch.save_batch(self._folder, step, batch)
        text = nonfinite_batch.describe(step, report, batch, path)
        self._consecutive_skips += 1
        if self._policy == "stop":
            raise UserError(
                f"{text}; earlier checkpoints are intact: lower optimizer.learning_rate, inspect the examples, or "
                "continue with --config.train.nonfinite=skip"
            )
        if self._consecutive_skips == _MAX_SKIPPED:
            raise UserError(f"{text}; so were the {_MAX_SKIPPED - 1} steps before it; lower optimizer.learning_rate")
        self._counts["skipped_steps"] += 1
        logger.warning("%s; skipped", text)

    def _warn_of_collapse(self, step: int) -> None:
        """Warns once when all predictions of a window become one class while its labels have several."""
        if step <= self._first_steps:
            return
        truth, predicted = (self._totals.confusion.sum(axis=axis) > 0 for axis in (1, 0))
        collapsed = predicted.sum() == 1 and truth.sum() > 1
        if collapsed and not self._collapsed:
            name = self._label_set.class_names[int(np.argmax(predicted))]
            logger.warning(
                "step %d: every pixel since the last report is predicted as %s; the network has collapsed", step, name
            )
        self._collapsed = collapsed
