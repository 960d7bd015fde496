"""Prediction for videos and cameras. Decoding, computing and encoding overlap, each in its own thread."""

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

from deeplab_jax import progress, visualization
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet

# A damaged file or a missing camera raises an error here; FFmpeg and OpenCV would print about it too.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")

# Encoders for .mp4 files in the wheels of OpenCV. They have none for H.264.
CODECS = {"mpeg4": "mp4v", "vp9": "vp09"}

_QUEUED = 4  # frames waiting between two stages
_DEFAULT_RATE = 25.0  # frames per second, if a camera or file does not report its rate
_POLL = 0.1  # seconds between checks of a waiting stage whether another stage failed


@dataclasses.dataclass(frozen=True)
class VideoReport:
    """The result of labeling a video.

    Attributes:
      path: the file written.
      frames: number of labeled frames.
      seconds: time from the first labeled frame to the end of the last; excludes the compilation before the first.
      frames_per_second: `frames - 1` divided by `seconds`; 0 for a single frame.
      milliseconds: mean time per frame of each stage: decode, compute, encode. Stages overlap.
      interrupted: stopped by Ctrl-C.
    """

    path: pathlib.Path
    frames: int
    seconds: float
    frames_per_second: float
    milliseconds: dict[str, float]
    interrupted: bool


def overlay_path(source: pathlib.Path | int, output: pathlib.Path) -> pathlib.Path:
    """Returns the output file for a video file or a camera.

    Raises:
      UserError: the source does not exist.
    """
    if isinstance(source, pathlib.Path) and not source.is_file():
        raise UserError(f"{source} does not exist")
    name = f"camera{source}" if isinstance(source, int) else source.stem
    return output / f"{name}_overlay.mp4"


def label_video(
    label: Callable[[UInt8[np.ndarray, "height width 3"]], UInt8[np.ndarray, "height width"]],
    source: pathlib.Path | int,
    path: pathlib.Path,
    label_set: LabelSet,
    *,
    codec: str = "mpeg4",
) -> VideoReport:
    """Writes a video in which every frame is tinted with the colors of its classes. Sound is not copied.

    Decoding, computing and encoding run at the same time, with at most four frames waiting between two stages. A file
    is decoded no faster than the network computes. A camera does not wait: of the frames that arrive while the network
    is busy, only the newest is labeled, and the previous frame is repeated for the others, so that the file plays at
    the speed of the camera. An odd last row or column is cropped, because encoders need even sizes.

    Args:
      label: returns the class of every pixel of a frame. Called with the frames in order, in this thread. See
        `Predictor.start_video`.
      source: a file, or the number of a camera, which is read until Ctrl-C.
      path: the .mp4 file to write. A file of this name is replaced when the new one is complete.
      label_set: names and colors of the classes.
      codec: a key of `CODECS`. `mpeg4` (MPEG-4 Part 2) is fast and plays in most players but not in browsers; `vp9`
        plays in browsers and takes many times longer.

    Returns:
      The report. Ctrl-C ends the file at the current frame and returns normally.

    Raises:
      UserError: the source cannot be read or the file cannot be written; no partial file remains.
    """
    partial = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        with _open(source) as (frames, rate):
            loop = _Loop(frames, rate, partial, label_set, CODECS[codec], keeps_pace=isinstance(source, int))
            report = loop.run(label, _name(source))
        if report.frames == 0:
            raise UserError(f"{_name(source)} has no readable frame; it is damaged or not a video")
        _check_written(partial, loop.written)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return dataclasses.replace(report, path=path)


class _Loop:
    """The three stages and the queues between them."""

    def __init__(self, frames, rate, path, label_set, fourcc, *, keeps_pace):
        self._frames, self._rate, self._path, self._label_set, self._fourcc = frames, rate, path, label_set, fourcc
        self._keeps_pace = keeps_pace
        # Only the newest frame of a camera waits; older ones would appear late.
        self._decoded, self._labeled = queue.Queue(1 if keeps_pace else _QUEUED), queue.Queue(_QUEUED)
        self._stop = threading.Event()  # a stage failed: all stages end
        self._enough = threading.Event()  # no more frames: finish those in the queues
        self._errors: list[BaseException] = []
        self._busy = {"decode": 0.0, "compute": 0.0, "encode": 0.0}
        self.written = 0

    def run(self, label, name: str) -> VideoReport:
        threads = [threading.Thread(target=self._guarded, args=(stage,)) for stage in (self._decode, self._encode)]
        for thread in threads:
            thread.start()
        first = time.perf_counter()
        count, interrupted = 0, False
        with progress.bar(name) as bar:
            try:
                for index, frame in self._take_all(self._decoded):
                    with self._timed("compute"):
                        label_map = label(frame)
                    if count == 0:  # the first frame includes compilation
                        first, self._busy["compute"] = time.perf_counter(), 0.0
                    self._put(self._labeled, (index, frame, label_map))
                    count += 1
                    rate = _rate(count, time.perf_counter() - first)
                    bar.update(completed=count, status=f"{rate:.1f} frames per second")
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
                with contextlib.suppress(queue.Empty):  # the other thread may have taken it
                    self._decoded.get_nowait()
            self._put(self._decoded, (index, frame), until=self._enough)
            index += 1
        self._put(self._decoded, None, until=self._enough)

    def _encode(self) -> None:
        writer, shown = None, None
        try:
            for index, frame, label_map in self._take_all(self._labeled):
                with self._timed("encode"):
                    tinted = cv2.cvtColor(visualization.overlay(frame, label_map, self._label_set), cv2.COLOR_RGB2BGR)
                    if writer is None:
                        writer = self._open_writer(tinted.shape[:2])
                    if shown is not None and shown.shape != tinted.shape:
                        raise UserError(f"frame {index} has another size than the previous frames; cut the video there")
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
            raise UserError(f"cannot write {self._path} as {self._fourcc} video; is its folder writable?")
        return writer

    def _take_all(self, source: queue.Queue) -> Iterator:
        """Yields the items of a queue until it contains None or a stage failed."""
        while not self._stop.is_set():
            try:
                item = source.get(timeout=_POLL)
            except queue.Empty:
                continue
            if item is None:
                return
            yield item

    def _put(self, target: queue.Queue, item, *, until: threading.Event | None = None) -> None:
        """Puts an item into a queue, waiting for space unless a stage failed or `until` is set."""
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
    """Opens a file or camera; yields it and its frames per second."""
    capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    try:
        if not capture.isOpened():
            fix = "is it connected and accessible?" if isinstance(source, int) else "it is damaged or not a video"
            raise UserError(f"cannot read {_name(source)}: {fix}")
        rate = capture.get(cv2.CAP_PROP_FPS)
        yield capture, rate if 0 < rate < math.inf else _DEFAULT_RATE
    finally:
        capture.release()


def _check_written(path: pathlib.Path, frames: int) -> None:
    """Counts the frames of the file, because OpenCV does not report a full disk."""
    capture = cv2.VideoCapture(str(path))
    found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    capture.release()
    if found != frames:
        raise UserError(f"{path} has only {found} of {frames} frames; is the disk full?")


def _rate(frames: int, seconds: float) -> float:
    return (frames - 1) / seconds if frames > 1 else 0.0


def _name(source: pathlib.Path | int) -> str:
    return f"camera {source}" if isinstance(source, int) else f"video {source}"
