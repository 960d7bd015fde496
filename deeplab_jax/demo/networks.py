"""What the page of `deeplab-jax demo` does with an image: which networks there are, and what each makes of it."""

import contextlib
import dataclasses
import functools
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import UInt8

from deeplab_jax import data, visualization
from deeplab_jax.errors import UserError
from deeplab_jax.inference.predictor import Predictor
from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained import presets

Loader = Callable[[], Predictor]

_compilation = threading.local()


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A labeled image.

    Attributes:
      label_map: the class id of every pixel, at the image's own size.
      overlay: the image in RGB, tinted with its classes.
      labels: names and colors of the classes.
      shares: the classes in it, the largest first.
      load_seconds: reading the network's parameters, 0 if that was done before.
      compile_seconds: JAX's tracing and compiling, near 0 if an image of about this size was labeled before.
      predict_seconds: the rest of the time from RGB to labels.
    """

    label_map: UInt8[np.ndarray, "height width"]
    overlay: UInt8[np.ndarray, "height width 3"]
    label_set: LabelSet
    shares: Sequence[visualization.ClassShare]
    load_seconds: float
    compile_seconds: float
    predict_seconds: float


class Networks:
    """Networks by name. Each is loaded when it is first asked for, and kept.

    Threads may share it. A network labels one image at a time: it keeps all cores busy with one, two requests for it
    do not load it twice, and two images of a new size do not compile the same program twice.

    Attributes:
      names: in the order of the page's menu.
    """

    def __init__(self, loaders: Mapping[str, Loader], *, max_pixels: int):
        """Loads nothing yet.

        Args:
          loaders: what loads each network; at least one.
          max_pixels: an image with more, height times width, is refused before its pixels are decoded.
        """
        self._slots = {name: _Slot(load) for name, load in loaders.items()}
        self.names, self.max_pixels = tuple(loaders), max_pixels

    def label_set(self, name: str) -> LabelSet:
        """The classes of a network, which is loaded if it is not yet.

        Raises:
          UserError: it cannot be loaded.
        """
        slot = self._slots[name]
        with slot.lock:
            return slot.predictor.label_set

    def segment(self, path: pathlib.Path, name: str) -> Segmentation:
        """Labels an image file.

        Args:
          path: any image that `data.read_image` reads.
          name: of the network.

        Raises:
          UserError: the file is damaged, no image or too large, or there is no such network, or it cannot be loaded.
        """
        if name not in self._slots:
            raise UserError(f"network {name!r} is not offered here")
        image = data.read_image(path, max_pixels=self.max_pixels)
        slot = self._slots[name]
        with slot.lock, _compile_time() as compile_seconds:  # time in the queue is nobody's
            started = time.perf_counter()
            predictor = slot.predictor
            loaded, compiled_while_loading = time.perf_counter(), compile_seconds()
            label_map = _label(predictor, image)
            compile_seconds_here = compile_seconds() - compiled_while_loading
            predict_seconds = time.perf_counter() - loaded - compile_seconds_here
        return Segmentation(
            label_map=label_map,
            overlay=visualization.overlay(image, label_map, predictor.label_set),
            label_set=predictor.label_set,
            shares=visualization.class_shares(label_map, predictor.label_set),
            load_seconds=loaded - started,
            compile_seconds=compile_seconds_here,
            predict_seconds=predict_seconds,
        )


def networks_here(named: Sequence[str | pathlib.Path] = (), workdir: pathlib.Path | None = None) -> dict[str, Loader]:
    """Loaders of the networks that need no download, by name, after those that the command line names.

    Args:
      named: presets by name, which are fetched if need be, and folders, called by their last part where that is clear.
      workdir: of a training run.

    Raises:
      UserError: there is no network at all.
    """
    given: list[tuple[str, Loader]] = []
    if workdir is not None:
        given.append((str(workdir), functools.partial(Predictor.from_pretrained, workdir)))
    given += [(str(name), functools.partial(Predictor.from_pretrained, name)) for name in named]
    short = [pathlib.Path(name).resolve().name or name for name, _ in given]
    loaders = {
        last if short.count(last) == 1 else whole: loader for last, (whole, loader) in zip(short, given, strict=True)
    }
    for preset in presets.list_presets():
        if preset.classes is not None and preset.name not in loaders and presets.find_file(preset) is not None:
            loaders[preset.name] = functools.partial(Predictor.from_pretrained, preset.name)
    if not loaders:
        raise UserError(
            "no network is on this disk; name one with --preset (`deeplab-jax presets` lists them) or --workdir"
        )
    return loaders


class _Slot:
    """A place for a network; `predictor` is read with the lock held."""

    def __init__(self, load: Loader):
        self._load, self.lock = load, threading.Lock()
        self._predictor: Predictor | None = None

    @property
    def predictor(self) -> Predictor:
        # Not a cached_property: that of Python 3.11 has one lock for all instances.
        if self._predictor is None:
            self._predictor = self._load()
        return self._predictor


def _label(predictor: Predictor, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width"]:
    return predictor(image).label_map


@contextlib.contextmanager
def _compile_time() -> Iterator[Callable[[], float]]:
    """Gives the seconds that this thread has spent so far on tracing, lowering and compiling."""
    _listen()
    _compilation.spans = []
    try:
        yield lambda: _covered(_compilation.spans)
    finally:
        _compilation.spans = None


@functools.cache
def _listen() -> None:
    jax.monitoring.register_event_time_span_listener(_note)


def _note(event: str, start: float, end: float, **kwargs: str | int) -> None:
    spans = getattr(_compilation, "spans", None)
    if spans is not None and event.startswith("/jax/core/compile/"):
        spans.append((start, end))


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union: the tracing of a function contains that of the functions it calls."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
