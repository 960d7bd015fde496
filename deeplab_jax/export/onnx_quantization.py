"""8-bit integers in ONNX: onnxruntime's static quantization, as QuantizeLinear and DequantizeLinear nodes (QDQ)."""

import contextlib
import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np

from deeplab_jax.errors import UserError


def import_quantization() -> ModuleType:
    """Imports onnxruntime's quantization.

    Raises:
      UserError: onnxruntime is not installed.
    """
    try:
        import onnxruntime.quantization as quantization
        import onnxruntime.quantization.shape_inference  # noqa: F401 - `quantization` does not import it
    except ImportError as error:
        raise UserError(
            f"int8 needs onnxruntime, which cannot be imported ({error}); install the extra: "
            "pip install 'deeplab_jax[runtimes]'"
        ) from None
    return quantization


def quantize(model: bytes, calibration: Sequence[np.ndarray], batch: int | None) -> bytes:
    """Quantizes the weights and activations of an ONNX model to 8-bit integers.

    Weights have a scale per output channel. The range of an activation is that of all calibration images.

    Args:
      model: the serialized model, with the input `images`.
      calibration: inputs of the network, (height, width, channels) each.
      batch: batch size of the model; None for any.

    Raises:
      UserError: onnxruntime is not installed.
    """
    quantization = import_quantization()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, prepared, result = (pathlib.Path(folder) / name for name in ("given", "prepared", "result"))
        given.write_bytes(model)
        # Merges constant factors and summands into the kernels and biases of convolutions.
        quantization.shape_inference.quant_pre_process(given, prepared, skip_symbolic_shape=True)
        dtype = _input_dtype(prepared)
        quantization.quantize_static(
            prepared,
            result,
            _reader(quantization, _batches(calibration, batch or 1, dtype)),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # The widest sums of products on processors with AVX2, without VNNI, hold 7-bit weights.
            reduce_range=True,
        )
        return result.read_bytes()


def _reader(quantization: ModuleType, batches: Iterator[np.ndarray]):
    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            images = next(batches, None)
            return None if images is None else {"images": images}

    return Reader()


def _batches(calibration: Sequence[np.ndarray], size: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    for begin in range(0, len(calibration), size):
        images = [calibration[min(begin + i, len(calibration) - 1)] for i in range(size)]
        yield np.stack(images).astype(dtype)


def _input_dtype(path: pathlib.Path) -> np.dtype:
    import onnx

    model = onnx.load(os.fspath(path))
    return onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides messages that say how to quantize: what they recommend is done here."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
