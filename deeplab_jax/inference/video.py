"""Videos labeled frame by frame: decoding, computing and encoding at the same time, each in a thread of its own."""

import contextlib
import dataclasses
import math
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from deeplab_jax import visualization
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet

# FFmpeg and OpenCV would print lines of their own about a damaged file or a missing camera; it is said once, here.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")

# What OpenCV's wheels can write into an .mp4 file: they bring no H.264 encoder.
CODECS = {"mpeg4": "mp4v", "vp9": "vp09"}

_QUEUED = 4  # frames that wait between two stages
_DEFAULT_RATE = 25.0  # frames a second of a camera or file that does not say
_POLL = 0.1  # seconds after which a stage that waits looks whether another has failed


@dataclasses.dataclass(frozen=True)
class VideoReport:
    """What became of a video.

    Attributes:
      path: the file written.
      frames: that were labeled.
      seconds: from the first labeled frame to the end of the last; the compilation before the first is not in it.
      frames_per_second: `frames - 1` over `seconds`; 0 for a single frame.
      milliseconds: a frame's mean time in each stage: decode, compute, encode. They overlap.
      interrupted: stopped by Ctrl-C.
    """

    path: pathlib.Path
    frames: int
    seconds: float
    frames_per_second: float
    milliseconds: dict[str, float]
    interrupted: bool


def overlay_path(source: pathlib.Path | int, output: pathlib.Path) -> pathlib.Path:
    """Where the overlay of a video file or of a camera goes; both may not exist yet.

    Raises:
      UserError: the source does not exist, or the file exists.
    """
    if isinstance(source, pathlib.Path) and not source.is_file():
        raise UserError(f"{source} does not exist")
    name = f"camera{source}" if isinstance(source, int) else source.stem
    path = output / f"{name}_overlay.mp4"
    if path.exists():
        raise UserError(f"{path} exists; choose another --output or remove it")
    return path


def label_video(
    label: Callable[[UInt8[np.ndarray, "height width 3"]], UInt8[np.ndarray, "height width"]],
    source: pathlib.Path | int,
    path: pathlib.Path,
    label_set: LabelSet,
    *,
    codec: str = "mpeg4",
    console: Console | None = None,
) -> VideoReport:
    """Writes a video with every frame tinted in the colors of its classes. Sound is not copied.

    Three stages run at once, with at most four frames between two of them. A file is decoded no faster than it is
    computed. A camera does not wait: of the frames that come while the network is busy only the newest is labeled,
    and the frame before is shown for the time of the others, so that the file runs at the camera's speed. An odd
    row or column at the end is cut off, which is what encoders take.

    Args:
      label: the class of every pixel of a frame; called in the order of the frames, in this thread.
      source: a file, or a camera's number, which is read until Ctrl-C.
      path: of the .mp4 file.
      labels: names and colors.
      codec: a key of `CODECS`: `mpeg4` (MPEG-4 Part 2) is fast, and most players know it, browsers do not; `vp9` is
        for browsers, and takes many times as long.
      console: shows the frames a second on it.

    Returns:
      The report, also after Ctrl-C, which ends the file where it is.

    Raises:
      UserError: the source cannot be read, or the file cannot be written; nothing is left of it.
    """
    with _open(source) as (frames, rate):
        loop = _Loop(frames, rate, path, label_set, CODECS[codec], keeps_pace=isinstance(source, int))
        try:
            report = loop.run(label, f"{source}", console)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    if report.frames == 0:
        path.unlink(missing_ok=True)
        raise UserError(f"{_name(source)} has no frame that can be read; it is damaged or no video")
    _check_written(path, loop.written)
    return report


class _Loop:
    """The three stages and what is between them."""

    def __init__(self, frames, rate, path, labels, fourcc, *, keeps_pace):
        self._frames, self._rate, self._path, self._labels, self._fourcc = frames, rate, path, labels, fourcc
        self._keeps_pace = keeps_pace
        # Of a camera, only the newest frame waits: every other would be shown late.
        self._decoded, self._labeled = queue.Queue(1 if keeps_pace else _QUEUED), queue.Queue(_QUEUED)
        self._stop = threading.Event()  # nobody waits any longer
        self._enough = threading.Event()  # no further frames: those that are there are finished
        self._errors: list[BaseException] = []
        self._busy = {"decode": 0.0, "compute": 0.0, "encode": 0.0}
        self.written = 0

    def run(self, label, name: str, console: Console | None) -> VideoReport:
        threads = [threading.Thread(target=self._guarded, args=(stage,)) for stage in (self._decode, self._encode)]
        for thread in threads:
            thread.start()
        first = time.perf_counter()
        count, interrupted = 0, False
        bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console,
            transient=True, disable=console is None,
        )  # fmt: skip
        with bar as progress:
            task = progress.add_task(name, total=None)
            try:
                for index, frame in self._take_all(self._decoded):
                    with self._timed("compute"):
                        label_map = label(frame)
                    if count == 0:
                        first, self._busy["compute"] = time.perf_counter(), 0.0  # compiling is not computing
                    self._put(self._labeled, (index, frame, label_map))
                    count += 1
                    rate = _rate(count, time.perf_counter() - first)
                    progress.update(task, description=f"{name}: {count} frames, {rate:.1f} a second")
            except KeyboardInterrupt:
                interrupted = True
            except BaseException as error:
                self._fail(error)
            self._enough.set()
            self._put(self._labeled, None)
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]
        seconds = time.perf_counter() - first if count else 0.0
        shares = {stage: 1000 * busy / max(1, count - (stage == "compute")) for stage, busy in self._busy.items()}
        return VideoReport(self._path, count, seconds, _rate(count, seconds), shares, interrupted)

    def _decode(self) -> None:
        index = 0
        while not self._enough.is_set():
            with self._timed("decode"):
                read, frame = self._frames.read()
                if not read:
                    break
                frame = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            if self._keeps_pace:
                with contextlib.suppress(queue.Empty):  # it may be taken just now
                    self._decoded.get_nowait()
            self._put(self._decoded, (index, frame), until=self._enough)
            index += 1
        self._put(self._decoded, None, until=self._enough)

    def _encode(self) -> None:
        writer, shown = None, None
        try:
            for index, frame, label_map in self._take_all(self._labeled):
                with self._timed("encode"):
                    tinted = cv2.cvtColor(visualization.overlay(frame, label_map, self._labels), cv2.COLOR_RGB2BGR)
                    if writer is None:
                        writer = self._open_writer(tinted.shape[:2])
                    if shown is not None and shown.shape != tinted.shape:
                        raise UserError(f"frame {index} is not as large as those before it; cut the video there")
                    while shown is not None and self.written < index:
                        writer.write(shown)
                        self.written += 1
                    writer.write(tinted)
                    self.written += 1
                    shown = tinted
        finally:
            if writer is not None:
                writer.release()

    def _open_writer(self, size: tuple[int, int]):
        fourcc = cv2.VideoWriter_fourcc(*self._fourcc)
        writer = cv2.VideoWriter(str(self._path), cv2.CAP_FFMPEG, fourcc, self._rate, (size[1], size[0]))
        if not writer.isOpened():
            raise UserError(f"{self._path} cannot be written as {self._fourcc} video; is its folder writable?")
        return writer

    def _take_all(self, source: queue.Queue) -> Iterator:
        """What comes out of a queue, up to None, or until a stage has failed."""
        while not self._stop.is_set():
            try:
                item = source.get(timeout=_POLL)
            except queue.Empty:
                continue
            if item is None:
                return
            yield item

    def _put(self, target: queue.Queue, item, *, until: threading.Event | None = None) -> None:
        """Waits for a place, unless a stage has failed or `until` says that nobody takes it."""
        while not self._stop.is_set() and not (until is not None and until.is_set()):
            with contextlib.suppress(queue.Full):
                target.put(item, timeout=_POLL)
                return

    def _guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._errors.append(error)
        self._stop.set()
        self._enough.set()

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._busy[stage] += time.perf_counter() - start


@contextlib.contextmanager
def _open(source: pathlib.Path | int) -> Iterator[tuple[cv2.VideoCapture, float]]:
    """A file or camera, and its frames a second."""
    capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    try:
        if not capture.isOpened():
            fix = "is it connected, and may you use it?" if isinstance(source, int) else "it is damaged or no video"
            raise UserError(f"{_name(source)} cannot be read: {fix}")
        rate = capture.get(cv2.CAP_PROP_FPS)
        yield capture, rate if 0 < rate < math.inf else _DEFAULT_RATE
    finally:
        capture.release()


def _check_written(path: pathlib.Path, frames: int) -> None:
    """OpenCV says nothing of a full disk, so the file is asked how many frames it has."""
    capture = cv2.VideoCapture(str(path))
    found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    capture.release()
    if found != frames:
        path.unlink(missing_ok=True)
        raise UserError(f"{path} got {found} of {frames} frames; is the disk full?")


def _rate(frames: int, seconds: float) -> float:
    return (frames - 1) / seconds if frames > 1 else 0.0


def _name(source: pathlib.Path | int) -> str:
    return f"camera {source}" if isinstance(source, int) else f"video {source}"
