"""TFLite, for LiteRT."""

from deeplab_jax.export.program import Program
from deeplab_jax.export.tensorflow_function import import_tensorflow, to_tf_function


def serialize(program: Program) -> bytes:
    """Serializes a program with a fixed size and batch as a .tflite file of float32 operations.

    Raises:
      UserError: TensorFlow is not installed.
    """
    tf = import_tensorflow()
    module = tf.Module()
    module.serving = to_tf_function(tf, program, program.function, ("cpu",))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serving.get_concrete_function()], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return converter.convert()
