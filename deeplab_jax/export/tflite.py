"""TFLite, for LiteRT."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from deeplab_jax.export.program import Program
from deeplab_jax.export.tensorflow_function import import_tensorflow, to_tf_function


def serialize(program: Program, calibration: Sequence[np.ndarray] = ()) -> bytes:
    """Serializes a program with a fixed size and batch as a .tflite file.

    Args:
      program: the program.
      calibration: inputs of the network, (height, width, channels) each, from which int8 takes the ranges of values.

    Raises:
      UserError: TensorFlow is not installed.
    """
    tf = import_tensorflow()
    options, module = program.options, tf.Module()
    module.serving = _to_function(tf, program)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serving.get_concrete_function()], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if options.quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if options.quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if options.quantize == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: _batches(calibration, options.batch)
        converter.inference_input_type = tf.uint8 if options.uint8 else tf.float32
    return converter.convert()


def _to_function(tf: ModuleType, program: Program) -> Any:
    """Returns a `tf.function` that classifies with JAX's operations, and resizes with TensorFlow's.

    The converter has no operation for the products with matrices by which JAX resizes.
    """
    # The converter changes the input of a quantized file to uint8 itself.
    dtype = tf.float32 if program.options.quantize == "int8" else tf.as_dtype(program.dtype)
    if program.classify is None:
        return to_tf_function(tf, program, program.function, ("cpu",), dtype=dtype)
    classify = to_tf_function(
        tf, program, lambda images: program.classify(program.variables, images), ("cpu",), dtype=dtype
    )

    @tf.function(input_signature=classify.input_signature, autograph=False)
    def serve(images):
        logits = tf.compat.v1.image.resize_bilinear(
            classify(images)[program.output_name],
            program.options.size,
            align_corners=program.align_corners,
            half_pixel_centers=not program.align_corners,
        )
        if not program.options.argmax:
            return {program.output_name: logits}
        return {program.output_name: tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.uint8)}

    return serve


def _batches(calibration: Sequence[np.ndarray], size: int):
    """Yields batches of the calibration images. The range of the first one is that of all images: 0 to 255.

    With this range, the quantized input is the uint8 image itself: its scale is one.
    """
    for begin in range(0, len(calibration), size):
        batch = [calibration[min(begin + i, len(calibration) - 1)] for i in range(size)]
        images = np.stack(batch).astype(np.float32)
        if begin == 0:
            images[0, 0, 0], images[0, 0, -1] = 0, 255
        yield [images]
