"""The log of a training run: log lines or a progress bar, `metrics.jsonl`, and other writers."""

import contextlib
import datetime
import json
import logging
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import progress, visualization
from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import LabelSet
from deeplab_jax.workdir.writers import MetricsWriter, Status, open_writers

METRICS_FILE = "metrics.jsonl"

logger = logging.getLogger(__name__)


class Writer:
    """Writes training metrics and evaluation scores. A context manager.

    `metrics.jsonl` gets one line of strict JSON per call (NaN and infinities become null) and has every step once: a
    run that continues at `start_step` first drops later lines. The writers of `config.log` get the same values.
    Training metrics are shown in a progress bar, or logged where no bar is shown; evaluations are always logged.

    Args:
      workdir: the workdir; it must exist when the context is entered.
      total_steps: number of training steps, for the progress and the remaining time.
      batch_size: global batch size, for the speed in images.
      start_step: step of the checkpoint that the run continues from; 0 starts from scratch.
      repeats_evaluation: the run evaluates the state of `start_step` again, as a finished run does.
      config: config of the run, whose `log` names other writers; see `deeplab_jax.workdir.writers`. None has none.
      enabled: False writes nothing, for every process but one.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        total_steps: int,
        batch_size: int,
        start_step: int = 0,
        repeats_evaluation: bool = False,
        config: ConfigDict | None = None,
        enabled: bool = True,
    ):
        self._workdir = workdir
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._start_step = start_step
        self._repeats_evaluation = repeats_evaluation or start_step == total_steps
        self._config = config
        self._enabled = enabled
        self._writers: list[MetricsWriter] = []
        self._clock = _StepClock()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Writer":
        if not self._enabled:
            return self
        path = self._workdir / METRICS_FILE
        with _disk_errors(path):
            self._workdir.mkdir(parents=True, exist_ok=True)
            _drop_lines_after(path, self._start_step, repeats_evaluation=self._repeats_evaluation)
            with path.open("a"):  # fail now, not after the first hundred steps, if it is not writable
                pass
        if self._config is not None:
            self._writers = open_writers(self._config, self._workdir, start_step=self._start_step)
            self._replay()
        self._bar = self._stack.enter_context(progress.bar("train", self._total_steps, completed=self._start_step))
        if self._start_step < self._total_steps:
            self._bar.update(status="preparing")
            message = "preparing the train step; the first report follows when its steps are done"
            logger.info("step %d/%d  %s", self._start_step, self._total_steps, message, extra=self._bar.log_extra)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        status: Status = "finished" if kind is None else "stopped" if issubclass(kind, Preempted) else "failed"
        for writer in self._writers:
            writer.close(status)

    def write_train(self, step: int, scalars: dict[str, Any]) -> None:
        """Writes training metrics at `step`.

        The speed is measured since the last call, without pauses. The first call has none (null), since its time is
        mostly compilation.

        Args:
          step: the step, counted from 1.
          scalars: metrics by name, such as `loss`, `mean_iou`, `learning_rate`; None where there is nothing to average.
            `loss_terms` holds a number per term.

        Raises:
          UserError: the disk is full, or the workdir is gone.
        """
        if not self._enabled:
            return
        steps_per_second = self._clock.rate(step)
        speeds = {
            "examples_per_second": None if steps_per_second is None else steps_per_second * self._batch_size,
            "steps_per_second": steps_per_second,
        }
        self._write_line({"step": step, **speeds, **scalars})
        self._send(self._writers, "train", speeds | scalars, step)
        status = _status(scalars, self._total_steps - step, **speeds)
        self._bar.update(completed=step, status=status)
        logger.info("step %d/%d  %s", step, self._total_steps, status, extra=self._bar.log_extra)

    def write_evaluation(self, step: int, scores: dict[str, Any], label_set: LabelSet) -> None:
        """Writes the scores of an evaluation at `step`.

        Args:
          step: the step, counted from 1; 0 is the state before it.
          scores: numbers by name, `per_class_iou`, and optionally `gallery`: (image, label, prediction) triples of
            uint8 arrays of shapes (height, width, 3), (height, width), (height, width), whose sizes may differ.
          label_set: class names and palette of the gallery.

        Raises:
          UserError: the disk is full, or the workdir is gone.
        """
        if not self._enabled:
            return
        with self._clock.pause():
            values = {name: value for name, value in scores.items() if name != "gallery"}
            self._write_line({"step": step, "eval": values})
            self._send(self._writers, "eval", values, step)
            if self._writers and scores.get("gallery"):
                strip = visualization.gallery_strip(*zip(*scores["gallery"], strict=True), label_set)
                for writer in self._writers:
                    writer.add_image("eval/gallery", strip, step)
            shown = _summary(values, "mean_iou", "pixel_accuracy", "loss", "num_images")
            logger.info("step %d/%d  evaluation: %s", step, self._total_steps, shown)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time spent inside (an evaluation, a checkpoint) out of the speed."""
        with self._clock.pause():
            yield

    def _write_line(self, values: dict[str, Any]) -> None:
        path = self._workdir / METRICS_FILE
        # Opened for each line: a crash loses nothing, and a full disk fails here, not again on closing.
        with _disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(values), allow_nan=False) + "\n")

    def _replay(self) -> None:
        """Sends the lines before `start_step` to the writers that may lack them."""
        writers = [writer for writer in self._writers if writer.replays]
        for line in read_metrics(self._workdir) if writers else ():
            if "eval" in line:
                self._send(writers, "eval", line["eval"], line["step"])
            else:
                self._send(writers, "train", {name: line[name] for name in line if name != "step"}, line["step"])

    def _send(self, writers: list[MetricsWriter], group: str, values: dict[str, Any], step: int) -> None:
        """Sends the numbers of a report, and the IoU of each class as a group of its own."""
        numbers = {name: value for name, value in values.items() if not isinstance(value, dict)}
        numbers |= {f"loss_{name}": value for name, value in values.get("loss_terms", {}).items()}
        for name, members in ((group, numbers), ("iou", values.get("per_class_iou", {}))):
            finite = {key: float(value) for key, value in members.items() if _finite(value) is not None}
            for writer in writers if finite else ():
                writer.add_scalars(name, finite, step)


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of a workdir's `metrics.jsonl`. Damaged ones are left out, such as one that a crash cut short."""
    path, lines = workdir / METRICS_FILE, []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def read_evaluations(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the scores of a workdir's evaluations during training that have a mean IoU, each with its `step`."""
    lines = [line for line in read_metrics(workdir) if isinstance(line.get("eval"), dict)]
    return [{"step": line["step"], **line["eval"]} for line in lines if line["eval"].get("mean_iou") is not None]


class _StepClock:
    """Measures steps per second between calls, without pauses."""

    def __init__(self):
        self._last: tuple[int, float] | None = None
        self._paused, self._is_paused = 0.0, False

    def rate(self, step: int) -> float | None:
        """Returns the speed since the last call; None on the first."""
        now, last, paused = time.perf_counter(), self._last, self._paused
        self._last, self._paused = (step, now), 0.0
        if last is None or step == last[0]:
            return None
        return (step - last[0]) / max(now - last[1] - paused, 1e-9)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out the time spent inside. A pause within a pause counts once."""
        if self._is_paused:
            yield
            return
        start, self._is_paused = time.perf_counter(), True
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start
            self._is_paused = False


def _drop_lines_after(path: pathlib.Path, step: int, *, repeats_evaluation: bool) -> None:
    """Drops the lines of `metrics.jsonl` after `step`, atomically.

    A run that repeats the evaluation at `step` drops that line too. Damaged lines are dropped: one at the end was cut
    short by a crash, others are reported.
    """
    if not path.exists():
        return
    kept, damaged = [], []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            is_repeated = repeats_evaluation and values["step"] == step and "eval" in values
            if values["step"] <= step and not is_repeated:
                kept.append(line + b"\n")
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged.append(number)
    if damaged and damaged != [len(lines)]:
        logger.warning("%s: dropped %d damaged lines, the first is line %d", path, len(damaged), damaged[0])
    write_atomically(path, b"".join(kept))


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose another --workdir"
        ) from error


def _finite(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON does not have, with None."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if value is None or isinstance(value, (str, bool, int)):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def _status(
    scalars: dict[str, Any],
    steps_left: int,
    examples_per_second: float | None,
    steps_per_second: float | None,
) -> str:
    parts = [_summary(scalars, "loss", "mean_iou", "confident_share")]
    if steps_per_second is not None:
        left = datetime.timedelta(seconds=round(steps_left / steps_per_second))
        parts.append(f"{examples_per_second:.3g} images/s  {left} left")
    return "  ".join(filter(None, parts))


def _summary(values: dict[str, Any], *names: str) -> str:
    """Formats numbers by name on one line, without those that are None."""
    present = {name: values[name] for name in names if values.get(name) is not None}
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in present.items()
    )
