"""Runtimes that compute a network in place of XLA: LiteRT and onnxruntime, which are faster on the CPU.

A runtime computes one function: it maps an image of a fixed size to logits at the classifier's resolution. Everything
else stays as it is with XLA: fitting, scales, flips, windows, batches, and the resizing and reduction of the logits.
"""

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from deeplab_jax.data.eval_protocol import Size
from deeplab_jax.inference import export_cache, multi_scale
from deeplab_jax.inference.export_cache import NetworkIdentity
from deeplab_jax.models import SegmentationNetwork

XLA, AUTO = "xla", "auto"
# The classes of the others, in a package above this one, which knows them by a protocol alone.
_CLASSES = {
    "litert": ("deeplab_jax.export.runtimes", "LiteRT"),
    "onnxruntime": ("deeplab_jax.export.runtimes", "OnnxRuntime"),
}

#: Values of `Predictor(runtime=...)`.
RUNTIMES = (XLA, *_CLASSES, AUTO)

#: Maps a batch of one image, of the network's input size, to its logits at the classifier's resolution.
Run = Callable[[Shaped[np.ndarray, "1 _ _ channels"]], Float[np.ndarray, "1 _ _ classes"]]


@runtime_checkable
class Runtime(Protocol):
    """A runtime that networks are exported to, such as `deeplab_jax.export.runtimes.LiteRT`.

    Attributes:
      name: its name in `RUNTIMES`.
    """

    name: str

    def is_installed(self) -> bool:
        """Returns True if all packages of the runtime are installed."""

    def check_installed(self) -> None:
        """Checks the same.

        Raises:
          UserError: a package is missing.
        """

    def version(self) -> str:
        """Returns the versions of all packages that decide the content of an exported file."""

    def export(self, model: SegmentationNetwork, variables: Any, size: Size) -> bytes:
        """Exports the logits at the classifier's resolution of one float32 image of (height, width) `size`.

        Raises:
          UserError: the runtime does not have an operation of the network.
        """

    def load(self, content: bytes, *, threads: int) -> Run:
        """Loads an exported network. Several threads may call the result."""


@runtime_checkable
class CoarseNetwork(Protocol):
    """A network outside of the compiled programs of a `Computation`."""

    def with_variables(self, variables: Any) -> "CoarseNetwork":
        """Returns the same network with other variables."""

    def run(self, size: Size) -> Run:
        """Returns the function for images of (height, width) `size`."""


class ExportedNetwork:
    """A network in another runtime. It is exported when it first sees an image of a size.

    Args:
      runtime: the runtime.
      identity: the network and its variables.
    """

    def __init__(self, runtime: Runtime, identity: NetworkIdentity):
        self._runtime, self._identity = runtime, identity
        self._runs: dict[Size, Run] = {}

    def with_variables(self, variables: Any) -> "ExportedNetwork":
        """Returns the network with other variables, which is exported again."""
        return ExportedNetwork(self._runtime, NetworkIdentity(self._identity.model, variables))

    def run(self, size: Size) -> Run:
        """Returns the function for images of (height, width) `size`.

        Raises:
          UserError: the network cannot be exported.
        """
        if size not in self._runs:
            content = export_cache.exported(self._runtime, self._identity, size)
            self._runs[size] = self._runtime.load(content, threads=usable_cpus())
        return self._runs[size]

    def is_exported(self, size: Size) -> bool:
        """Returns True if the network has been exported for images of (height, width) `size`."""
        return size in self._runs or export_cache.is_exported(self._runtime, self._identity, size)


def find_runtime(name: str) -> Runtime:
    """Returns a runtime other than XLA, by its name. Does not import its packages."""
    module, class_name = _CLASSES[name]
    return getattr(importlib.import_module(module), class_name)()


def platform_of(variables: Any) -> str:
    """Returns the platform of the devices of variables, such as "cpu"."""
    first = jax.tree.leaves(variables)[0]
    return next(iter(first.devices())).platform if isinstance(first, jax.Array) else jax.default_backend()


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may use. Each runtime starts as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def coarse_logits(network: CoarseNetwork, images: Shaped[Array | np.ndarray, "batch _ _ _"]) -> np.ndarray:
    """Returns the logits of a batch at the classifier's resolution. Its images are computed one by one.

    All threads compute an image together, so larger batches are not faster on a CPU. One exported file serves every
    batch size.
    """
    run = network.run(images.shape[1:3])
    images = np.asarray(images)
    return np.concatenate([run(images[i : i + 1]) for i in range(len(images))])


def coarse_views(
    network: CoarseNetwork, model: SegmentationNetwork, *, scales: Sequence[int | float], flip: bool
) -> Callable[[Shaped[Array, "batch height width channels"]], list[np.ndarray]]:
    """Returns a function that computes the coarse logits of `multi_scale.network_views` with another runtime."""
    compiled = jax.jit(model.ops.resize_bilinear, static_argnums=1)

    def resize(images, size):
        return np.asarray(compiled(images, size))

    def views(images):
        apply = functools.partial(coarse_logits, network)
        seen = multi_scale.map_views(apply, np.asarray(images), resize, scales=scales, flip=flip)
        return [logits for _, logits in seen]

    return views
