"""Exported files in their own runtimes: JAX, TensorFlow, LiteRT and onnxruntime."""

import contextlib
import importlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.export.tensorflow_function import import_tensorflow

#: Maps a batch of images, in the dtype of the file's input, to its logits or labels.
Runtime = Callable[[np.ndarray], np.ndarray]


def load(file_format: str, path: pathlib.Path, *, threads: int | None = None) -> Runtime:
    """Loads an exported network.

    Args:
      file_format: one of `FORMATS`.
      path: the file, or the folder of a SavedModel.
      threads: number of threads of LiteRT and onnxruntime (default: as many as there are cores).

    Raises:
      UserError: the runtime is not installed.
    """
    return _LOADERS[file_format](path, threads)


def _stablehlo(path: pathlib.Path, threads: int | None) -> Runtime:
    jax, export = importlib.import_module("jax"), importlib.import_module("jax.export")
    network = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(network(images))


def _savedmodel(path: pathlib.Path, threads: int | None) -> Runtime:
    tf = import_tensorflow()
    model = tf.saved_model.load(os.fspath(path))

    def run(images):
        return _only(model.signatures["serving_default"](images=tf.constant(images))).numpy()

    return run


def _tflite(path: pathlib.Path, threads: int | None) -> Runtime:
    interpreter = open_litert(path.read_bytes(), threads=threads or os.cpu_count())
    runner = interpreter.get_signature_runner("serving_default")
    (details,) = runner.get_input_details().values()

    def run(images):
        size = details["shape"][0]
        batches = (images[i : i + size] for i in range(0, len(images), size))
        return np.concatenate([_only(runner(images=_fill(batch, size)))[: len(batch)] for batch in batches])

    return run


def _onnx(path: pathlib.Path, threads: int | None) -> Runtime:
    session = open_onnx(path.read_bytes(), threads=threads or 0)
    size = session.get_inputs()[0].shape[0]

    def run(images):
        if isinstance(size, str):
            return session.run(None, {"images": images})[0]
        batches = (images[i : i + size] for i in range(0, len(images), size))
        return np.concatenate([session.run(None, {"images": _fill(batch, size)})[0][: len(batch)] for batch in batches])

    return run


_LOADERS: dict[str, Callable[[pathlib.Path, int | None], Runtime]] = {
    "stablehlo": _stablehlo,
    "savedmodel": _savedmodel,
    "tflite": _tflite,
    "onnx": _onnx,
}


def open_litert(content: bytes, *, threads: int) -> Any:
    """Opens a TFLite file with LiteRT and allocates its tensors.

    Raises:
      UserError: LiteRT is not installed.
    """
    litert = _import("ai_edge_litert.interpreter", "LiteRT")
    with _without_information():
        interpreter = litert.Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter


def open_onnx(content: bytes, *, threads: int, spin: bool = True) -> Any:
    """Opens an ONNX file with onnxruntime on the CPU.

    Args:
      content: the file.
      threads: number of threads; 0 for one per core.
      spin: whether threads wait for the next image in a loop.

    Raises:
      UserError: onnxruntime is not installed.
    """
    onnxruntime = _import("onnxruntime", "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _without_information() -> Iterator[None]:
    """Removes what LiteRT's C++ code writes to stderr about its delegate, for which it has no switch."""
    with tempfile.TemporaryFile() as written:
        stderr = os.dup(2)
        try:
            os.dup2(written.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            for line in written:
                if not line.startswith(b"INFO: "):
                    os.write(2, line)


def _fill(batch: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last image of a batch that is smaller than the file's."""
    return batch if len(batch) == size else np.concatenate([batch, batch[-1:].repeat(size - len(batch), axis=0)])


def _only(results: dict[str, Any]) -> Any:
    (result,) = results.values()
    return result


def _import(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{name} cannot be imported ({error}); install the extra: pip install 'deeplab_jax[runtimes]'"
        ) from None
