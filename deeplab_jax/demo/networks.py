"""The networks of the demo page: which ones it offers, and how they segment an uploaded image."""

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
from deeplab_jax.inference.runtime import XLA
from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained import presets

Loader = Callable[[], Predictor]

_compilation = threading.local()


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The segmentation of one image.

    Attributes:
      label_map: class id of every pixel, at the original size of the image.
      overlay: the RGB image tinted with the colors of its classes.
      label_set: names and colors of the classes.
      shares: the classes in the image with their fraction of the pixels, largest first.
      load_seconds: time to load the network; 0 if it was loaded before.
      compile_seconds: time JAX spent tracing and compiling; near 0 if an image of similar size came before.
      predict_seconds: the remaining time from RGB to labels.
    """

    label_map: UInt8[np.ndarray, "height width"]
    overlay: UInt8[np.ndarray, "height width 3"]
    label_set: LabelSet
    shares: Sequence[visualization.ClassShare]
    load_seconds: float
    compile_seconds: float
    predict_seconds: float


class Networks:
    """Networks by name. Each is loaded when it is first used, and kept.

    Thread-safe. A network segments one image at a time, which already uses all cores. Two simultaneous requests load
    it once, and compile the program for a new image size once.

    Attributes:
      names: the names, in the order of the menu.
      max_pixels: largest accepted number of pixels, height times width.
    """

    def __init__(self, loaders: Mapping[str, Loader], *, max_pixels: int):
        """Creates the collection without loading a network.

        Args:
          loaders: the function that loads each network, by name; at least one.
          max_pixels: images with more pixels, height times width, are rejected before they are decoded.
        """
        self._slots = {name: _Slot(load) for name, load in loaders.items()}
        self.names, self.max_pixels = tuple(loaders), max_pixels

    def label_set(self, name: str) -> LabelSet:
        """Returns the classes of a network, loading it if necessary.

        Raises:
          UserError: the network cannot be loaded.
        """
        slot = self._slots[name]
        with slot.lock:
            return slot.predictor.label_set

    def segment(self, path: pathlib.Path, name: str) -> Segmentation:
        """Segments an image file.

        Args:
          path: an image file that `data.read_image` reads.
          name: the network to use.

        Raises:
          UserError: the file is damaged, too large or not an image; or the network does not exist or cannot be loaded.
        """
        if name not in self._slots:
            raise UserError(f"network {name!r} is not on the menu")
        image = data.read_image(path, max_pixels=self.max_pixels)
        slot = self._slots[name]
        with slot.lock, _compile_time() as compile_seconds:  # waiting for the lock is not counted
            started = time.perf_counter()
            predictor = slot.predictor
            if not predictor.pixels.is_rgb:
                raise UserError(
                    f"this page takes 8-bit RGB images, but {name} takes {predictor.pixels}; use `deeplab-jax predict`"
                )
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


def find_networks(
    named: Sequence[str | pathlib.Path] = (), workdir: pathlib.Path | None = None, *, runtime: str = XLA
) -> dict[str, Loader]:
    """Returns the networks that the page offers: those the user named, then all that need no download.

    Args:
      named: names of presets, which may be downloaded, and folders. A folder appears under its last component if that
        is unambiguous.
      workdir: a training run, which comes first.
      runtime: what computes the networks, see `Predictor`.

    Returns:
      The function that loads each network, by name.

    Raises:
      UserError: no network was found.
    """
    load = functools.partial(functools.partial, Predictor.from_pretrained, runtime=runtime)
    given: list[tuple[str, Loader]] = []
    if workdir is not None:
        given.append((str(workdir), load(workdir)))
    given += [(str(name), load(name)) for name in named]
    short = [pathlib.Path(name).resolve().name or name for name, _ in given]
    loaders = {
        last if short.count(last) == 1 else whole: loader for last, (whole, loader) in zip(short, given, strict=True)
    }
    for preset in presets.list_presets():
        if preset.classes is not None and preset.name not in loaders and presets.find_file(preset) is not None:
            loaders[preset.name] = load(preset.name)
    if not loaders:
        raise UserError(
            "no network found on this disk; name one with --preset (`deeplab-jax presets` lists them) or --workdir"
        )
    return loaders


class _Slot:
    """A network that is loaded on first use. Hold `lock` to read `predictor`."""

    def __init__(self, load: Loader):
        self._load, self.lock = load, threading.Lock()
        self._predictor: Predictor | None = None

    @property
    def predictor(self) -> Predictor:
        # Not a cached_property: in Python 3.11 all instances share one lock.
        if self._predictor is None:
            self._predictor = self._load()
        return self._predictor


def _label(predictor: Predictor, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width"]:
    return predictor(image).label_map


@contextlib.contextmanager
def _compile_time() -> Iterator[Callable[[], float]]:
    """Yields a function that returns the seconds this thread has spent tracing, lowering and compiling."""
    _register_listener()
    _compilation.spans = []
    try:
        yield lambda: _union_length(_compilation.spans)
    finally:
        _compilation.spans = None


@functools.cache
def _register_listener() -> None:
    jax.monitoring.register_event_time_span_listener(_record_span)


def _record_span(event: str, start: float, end: float, **kwargs: str | int) -> None:
    spans = getattr(_compilation, "spans", None)
    if spans is not None and event.startswith("/jax/core/compile/"):
        spans.append((start, end))


def _union_length(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of time spans. They overlap: tracing a function includes tracing the functions it calls."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
