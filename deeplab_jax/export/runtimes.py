"""LiteRT and onnxruntime as runtimes of a `Predictor`, see `deeplab_jax.inference.runtime`."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.export import onnx, onnx_operations, running, separate_process
from deeplab_jax.export.program import ExportOptions, Program
from deeplab_jax.models import SegmentationNetwork

Run = Callable[[np.ndarray], np.ndarray]


class _Runtime:
    """The packages of a runtime. See `deeplab_jax.inference.runtime.Runtime` for the methods."""

    name: ClassVar[str]
    #: The modules that it imports, each with the names of the distributions that provide it.
    modules: ClassVar[Mapping[str, Sequence[str]]]

    def is_installed(self) -> bool:
        """Returns True if all modules are installed."""
        return not self._missing()

    def check_installed(self) -> None:
        """Checks that all modules are installed.

        Raises:
          UserError: one is missing.
        """
        for module in self._missing():
            extra = "install the extra: pip install 'deeplab_jax[runtimes]'"
            raise UserError(f"runtime={self.name} needs the package {module}; {extra}")

    def version(self) -> str:
        """Returns the versions of the packages, and of JAX, which traces the network."""
        versions = [f"jax {jax.__version__}"]
        for name in itertools.chain.from_iterable(self.modules.values()):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions.append(f"{name} {importlib.metadata.version(name)}")
        return ", ".join(versions)

    def _missing(self) -> list[str]:
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


class LiteRT(_Runtime):
    """LiteRT, whose XNNPACK kernels compute float32."""

    name = "litert"
    modules = {"ai_edge_litert": ("ai-edge-litert",), "tensorflow": ("tensorflow", "tensorflow-cpu")}

    def export(self, model: SegmentationNetwork, variables: Any, size: tuple[int, int]) -> bytes:
        """Exports a network to TFLite, in another process: TensorFlow keeps gigabytes and writes to the terminal."""
        return separate_process.serialize_tflite(_coarse_program(model, variables, size))

    def load(self, content: bytes, *, threads: int) -> Run:
        """Loads a TFLite file."""
        interpreter = running.open_litert(content, threads=threads)
        (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
        lock = threading.Lock()  # an interpreter has one set of tensors

        def run(image: np.ndarray) -> np.ndarray:
            with lock:
                interpreter.set_tensor(given["index"], image.astype(np.float32))
                interpreter.invoke()
                return interpreter.get_tensor(result["index"])

        return run


class OnnxRuntime(_Runtime):
    """onnxruntime on the CPU."""

    name = "onnxruntime"
    modules = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "onnx": ("onnx",)}

    def export(self, model: SegmentationNetwork, variables: Any, size: tuple[int, int]) -> bytes:
        """Exports a network to ONNX."""
        model = model.clone(ops=onnx_operations.OPERATIONS)
        return onnx.serialize(_coarse_program(model, variables, size), {})

    def load(self, content: bytes, *, threads: int) -> Run:
        """Loads an ONNX file."""
        # Threads that wait for the next image in a loop would take the CPUs from XLA, which resizes the logits.
        session = running.open_onnx(content, threads=threads, spin=False)
        return lambda image: session.run(None, {"images": image.astype(np.float32)})[0]


def _coarse_program(model: SegmentationNetwork, variables: Any, size: tuple[int, int]) -> Program:
    """The logits of one image at the classifier's resolution, which `Predictor` resizes to the size of the image."""
    return Program(
        apply=lambda variables, images: model.apply(variables, images, train=False)[1]["logits"],
        variables=jax.tree.map(jnp.asarray, variables),
        channels=model.in_channels,
        classes=model.num_classes,
        needs_multiples=False,
        options=ExportOptions(size=size, batch=1),
    )
