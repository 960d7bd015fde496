"""The choice of the runtime of a network: the one that is named, or the fastest one on this machine.

A network has to be exported before it can be measured in another runtime. That takes seconds, which is longer than XLA
needs for hundreds of images of a small network. So XLA computes the first images, until it has spent as long on them as
an export takes. Only then are the runtimes measured; the result is kept on disk, and the next process begins with it.
So a job of any length takes at most about twice as long as with the choice known, and a short one as long as with XLA.
"""

import contextlib
import functools
import logging
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.data.eval_protocol import Size
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.inference import export_cache
from deeplab_jax.inference.export_cache import NetworkIdentity
from deeplab_jax.inference.runtime import (
    AUTO,
    RUNTIMES,
    XLA,
    CoarseNetwork,
    ExportedNetwork,
    Run,
    Runtime,
    find_runtime,
    platform_of,
    usable_cpus,
)
from deeplab_jax.models import SegmentationNetwork

logger = logging.getLogger(__name__)

#: Seconds that XLA computes images of a size before the runtimes are measured.
PATIENCE = 20.0
_ROUNDS = 7  # calls of each runtime, in turns
_GAIN = 0.9  # a runtime that takes more than this fraction of XLA's time is not worth other rounding


def make_network(name: str, model: SegmentationNetwork, variables: Any) -> CoarseNetwork | None:
    """Returns the network in a runtime.

    Args:
      name: one of `RUNTIMES`.
      model: the network.
      variables: its variables, on a device.

    Returns:
      The network; None if XLA computes it.

    Raises:
      UserError: the runtime does not exist, is not installed, or cannot compute this network here.
    """
    if name not in RUNTIMES:
        raise UserError(f"runtime {name!r} does not exist{suggest(name, RUNTIMES)}")
    if name == XLA:
        return None
    dtype, device = jnp.dtype(model.dtype), platform_of(variables)
    is_supported = device == "cpu" and dtype == jnp.float32
    if name == AUTO:
        runtimes = [find_runtime(each) for each in RUNTIMES if each not in (XLA, AUTO)]
        runtimes = [runtime for runtime in runtimes if runtime.is_installed()]
        return AutomaticNetwork(runtimes, NetworkIdentity(model, variables)) if runtimes and is_supported else None
    if device != "cpu":
        raise UserError(
            f"runtime={name} computes on the CPU, but the device is a {device}; leave the runtime out, or set "
            "JAX_PLATFORMS=cpu"
        )
    if not is_supported:
        raise UserError(
            f"runtime={name} computes in float32, but train.compute_dtype is {dtype}; set it to float32, or leave the "
            "runtime out"
        )
    runtime = find_runtime(name)
    runtime.check_installed()
    return ExportedNetwork(runtime, NetworkIdentity(model, variables))


class AutomaticNetwork:
    """A network in the runtime that is fastest on this machine, for each size of its input.

    Args:
      runtimes: the runtimes to choose from, in addition to XLA.
      identity: the network and its variables.
      patience: seconds that XLA computes images of a size before the runtimes are measured.
    """

    def __init__(self, runtimes: Sequence[Runtime], identity: NetworkIdentity, *, patience: float = PATIENCE):
        self._runtimes, self._identity, self._patience = tuple(runtimes), identity, patience
        self._exported = {runtime.name: ExportedNetwork(runtime, identity) for runtime in runtimes}
        self._runs: dict[Size, Run] = {}
        model = identity.model
        self._apply = jax.jit(lambda variables, images: model.apply(variables, images, train=False)[1]["logits"])

    def with_variables(self, variables: Any) -> "AutomaticNetwork":
        """Returns the network with other variables, which has to be exported again."""
        identity = NetworkIdentity(self._identity.model, variables)
        return AutomaticNetwork(self._runtimes, identity, patience=self._patience)

    def run(self, size: Size) -> Run:
        """Returns the function for images of (height, width) `size`. It may change to another runtime between images.

        The runtime of an earlier measurement computes all images. If there was none, XLA computes the first ones.
        """
        if size not in self._runs:
            times = export_cache.read_times(self._identity, size, self._conditions())
            name = None if times is None else _fastest(times)
            if name in self._exported and self._exported[name].is_exported(size):
                self._runs[size] = self._exported[name].run(size)
            elif name == XLA:
                self._runs[size] = self._run_xla
            else:
                self._runs[size] = _Trial(self._run_xla, lambda image: self._measure(size, image), self._patience)
        return self._runs[size]

    def _run_xla(self, image: np.ndarray) -> np.ndarray:
        return np.asarray(self._apply(self._identity.variables, image))

    def _conditions(self) -> str:
        """Everything except the network and its input that decides which runtime is fastest."""
        versions = [f"{runtime.name} {runtime.version()}" for runtime in self._runtimes]
        return ", ".join([f"jax {jax.__version__}", *versions, f"{usable_cpus()} of {_processor()}"])

    def _measure(self, size: Size, image: np.ndarray) -> Run:
        """Measures all runtimes and returns the fastest."""
        runs = {XLA: self._run_xla}
        for name, network in self._exported.items():
            try:
                runs[name] = network.run(size)
            except UserError as error:
                logger.warning("%s", error)
        times = {name: 1000 * seconds for name, seconds in _median_seconds(runs, image).items()}
        export_cache.write_times(self._identity, size, self._conditions(), times)
        name = _fastest(times)
        shown = ", ".join(f"{each} {value:.1f} ms" for each, value in times.items())
        logger.info("Images of %dx%d pixels: %s; using %s", *size, shown, name)
        return runs[name]


class _Trial:
    """XLA's function, until it has taken long enough for measuring the others to be worth its time."""

    def __init__(self, run_xla: Run, measure: Callable[[np.ndarray], Run], patience: float):
        self._run_xla, self._measure, self._patience = run_xla, measure, patience
        self._chosen: Run | None = None
        self._seconds, self._is_compiled = 0.0, False

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self._chosen is not None:
            return self._chosen(image)
        begin = time.perf_counter()
        logits = self._run_xla(image)
        if self._is_compiled:
            self._seconds += time.perf_counter() - begin
        self._is_compiled = True
        if self._seconds > self._patience:
            self._chosen = self._measure(image)
        return logits


def _fastest(milliseconds: dict[str, float]) -> str:
    """The fastest runtime, or XLA if that is hardly slower."""
    name = min(milliseconds, key=milliseconds.__getitem__)
    return name if milliseconds[name] < _GAIN * milliseconds[XLA] else XLA


def _median_seconds(runs: dict[str, Run], image: np.ndarray) -> dict[str, float]:
    """Measures functions in turns, so that other work of the machine slows all of them down."""
    seconds = {name: [] for name in runs}
    for round_ in range(1 + _ROUNDS):
        for name, run in runs.items():
            begin = time.perf_counter()
            run(image)
            if round_ > 0:  # the first call also allocates memory
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


@functools.cache
def _processor() -> str:
    """The model of the CPU. The cache may be on a disk that several machines share."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
