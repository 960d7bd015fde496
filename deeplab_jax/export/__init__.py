"""Trained networks for other runtimes: StableHLO, TensorFlow's SavedModel, TFLite and ONNX."""

from deeplab_jax.export.exporter import FORMATS, METADATA_FILE, export_network, metadata_path
from deeplab_jax.export.program import ExportOptions

__all__ = ["FORMATS", "METADATA_FILE", "ExportOptions", "export_network", "metadata_path"]
