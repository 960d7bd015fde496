"""Trained networks for other runtimes: StableHLO, TensorFlow's SavedModel, TFLite and ONNX."""

from deeplab_jax.export.exporter import (
    FORMATS,
    METADATA_FILE,
    QUANTIZED_FORMATS,
    export_network,
    metadata_path,
    script_path,
)
from deeplab_jax.export.feeding import read_inputs
from deeplab_jax.export.program import QUANTIZATIONS, ExportOptions
from deeplab_jax.export.verification import Verification, draw_inputs, verify

__all__ = [
    "FORMATS",
    "METADATA_FILE",
    "QUANTIZATIONS",
    "QUANTIZED_FORMATS",
    "ExportOptions",
    "Verification",
    "draw_inputs",
    "export_network",
    "metadata_path",
    "read_inputs",
    "script_path",
    "verify",
]
