"""What a training run reports while it runs: the console, `metrics.jsonl` and TensorBoard."""

import contextlib
import datetime
import json
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import rich.console
import rich.progress

from deeplab_jax import visualization
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import LabelSet

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Writer:
    """Writes scores of steps and of evaluations to the places where people look. A context manager.

    `metrics.jsonl` gets one line of strict JSON for each call (NaN and infinities become null) and holds every step
    once: a run that continues at `start_step` first drops the lines after it. TensorBoard events go to `tensorboard/`.
    A terminal shows a progress bar; a console that is none (a log file) gets one plain line for each call.

    Args:
      workdir: exists once the writer is entered.
      total_steps: of the whole training, for the progress and the time left.
      batch_size: global, for the speed in examples.
      start_step: the step of the checkpoint that the run continues from; 0 starts afresh.
      tensorboard: whether to write TensorBoard events.
      console: None is silent.
      enabled: False writes nothing at all, for every process but one.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        total_steps: int,
        batch_size: int,
        start_step: int = 0,
        tensorboard: bool = True,
        console: rich.console.Console | None = None,
        enabled: bool = True,
    ):
        self._workdir = workdir
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._start_step = start_step
        self._use_tensorboard = tensorboard
        self._console = console
        self._enabled = enabled
        self._events = None
        self._progress = None
        self._clock = _StepClock()

    def __enter__(self) -> "Writer":
        if not self._enabled:
            return self
        path = self._workdir / METRICS_FILE
        with _disk_errors(path):
            self._workdir.mkdir(parents=True, exist_ok=True)
            _drop_lines_after(path, self._start_step, final=self._start_step == self._total_steps)
            path.touch()  # what cannot be written should not come out after the first hundred steps
        if self._use_tensorboard:
            from tensorboardX import SummaryWriter  # imports protobuf: not for those who only predict

            purge_step = self._start_step + 1 if self._start_step else None
            self._events = SummaryWriter(str(self._workdir / TENSORBOARD_FOLDER), purge_step=purge_step)
        if self._console is not None and self._console.is_terminal and not self._console.is_jupyter:
            self._progress = rich.progress.Progress(
                rich.progress.BarColumn(),
                rich.progress.TextColumn("step {task.completed}/{task.total}  {task.fields[status]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task(
                "train", total=self._total_steps, completed=self._start_step, status="compiling"
            )
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._events is not None:
            with _disk_errors(self._workdir / TENSORBOARD_FOLDER):
                self._events.close()

    def write_train(self, step: int, scalars: dict[str, int | float | None]) -> None:
        """Reports the training up to `step`.

        The speed is that since the last report, pauses left out; the first report has none (null), because its time
        is mostly compilation.

        Args:
          step: counted from 1.
          scalars: by name, e.g. `loss`, `mean_iou`, `learning_rate`; None where there is nothing to average.

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
        self._write_scalars("train", speeds | scalars, step)
        status = _status(scalars, self._total_steps - step, **speeds)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, status=status)
        else:
            self._print(f"step {step}/{self._total_steps}  {status}")

    def write_evaluation(self, step: int, scores: dict[str, Any], label_set: LabelSet) -> None:
        """Reports an evaluation of the parameters after `step`.

        Args:
          step: counted from 1.
          scores: numbers by name, `per_class_iou`, and optionally `gallery`: (image, truth, prediction) triples of
            uint8 arrays of shapes (height, width, 3), (height, width), (height, width), of differing sizes.
          labels: names and colors for the gallery.

        Raises:
          UserError: the disk is full, or the workdir is gone.
        """
        if not self._enabled:
            return
        with self._clock.pause():
            values = {name: value for name, value in scores.items() if name != "gallery"}
            self._write_line({"step": step, "eval": values})
            self._write_scalars("eval", values, step)
            if self._events is not None and scores.get("gallery"):
                strip = visualization.gallery_strip(*zip(*scores["gallery"], strict=True), label_set)
                self._events.add_image("eval/gallery", strip, step, dataformats="HWC")
            shown = _summary(values, "mean_iou", "pixel_accuracy", "loss", "num_images")
            self._print(f"step {step}/{self._total_steps}  evaluation: {shown}")

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside (an evaluation, a checkpoint) does not count for the speed, and the bar makes room."""
        if self._progress is not None:
            self._progress.stop()
        with self._clock.pause():
            yield
        if self._progress is not None:
            self._progress.start()

    def _write_line(self, values: dict[str, Any]) -> None:
        path = self._workdir / METRICS_FILE
        # Opened for each line: a crash loses nothing, and a full disk fails here rather than again when closing.
        with _disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(values), allow_nan=False) + "\n")

    def _write_scalars(self, group: str, values: dict[str, Any], step: int) -> None:
        if self._events is None:
            return
        for name, value in values.items():
            if _finite(value) is not None and not isinstance(value, dict):
                self._events.add_scalar(f"{group}/{name}", float(value), step)

    def _print(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class _StepClock:
    """Steps a second between reports, without the pauses."""

    def __init__(self):
        self._last: tuple[int, float] | None = None
        self._paused = 0.0

    def rate(self, step: int) -> float | None:
        """Since the last call; None at the first."""
        now, last, paused = time.perf_counter(), self._last, self._paused
        self._last, self._paused = (step, now), 0.0
        if last is None or step == last[0]:
            return None
        return (step - last[0]) / max(now - last[1] - paused, 1e-9)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start


def _drop_lines_after(path: pathlib.Path, step: int, *, final: bool) -> None:
    """Cuts `metrics.jsonl` back to what was written up to `step`, atomically.

    A run that continues at its last step (`final`) repeats the last evaluation, so the line of that goes too. A line
    that a crash cut short is no JSON and goes as well.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        repeated = final and values["step"] == step and "eval" in values
        if values["step"] <= step and not repeated:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept).encode())


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose another --workdir"
        ) from error


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for both."""
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
    parts = [_summary(scalars, "loss", "mean_iou")]
    if steps_per_second is not None:
        left = datetime.timedelta(seconds=round(steps_left / steps_per_second))
        parts.append(f"{examples_per_second:.3g} images/s  {left} left")
    return "  ".join(filter(None, parts))


def _summary(values: dict[str, Any], *names: str) -> str:
    """Numbers by name on one line; what has no number is left out."""
    present = {name: values[name] for name in names if values.get(name) is not None}
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in present.items()
    )
