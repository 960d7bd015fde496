"""Converts a program to a TensorFlow function with jax2tf: StableHLO inside TensorFlow's `XlaCallModule`."""

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from deeplab_jax.errors import UserError
from deeplab_jax.export.program import Program


def import_tensorflow() -> ModuleType:
    """Imports TensorFlow.

    Raises:
      UserError: TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides messages about how it was built
    try:
        import tensorflow
    except ImportError as error:
        raise UserError(
            f"this format needs TensorFlow, which cannot be imported ({error}); install the extra: "
            "pip install 'deeplab_jax[export]'"
        ) from None
    return tensorflow


def to_tf_function(
    tf: ModuleType, program: Program, function: Callable, platforms: tuple[str, ...], *arguments: Any, dtype: Any = None
) -> Any:
    """Converts a JAX function to a `tf.function`.

    Args:
      tf: TensorFlow.
      program: the program, for the shape of its images and the name of its output.
      function: maps (images, *arguments) to logits or labels.
      platforms: the platforms to lower for.
      *arguments: TensorFlow values that are passed to `function` after the images.
      dtype: the dtype of the images (default: the program's).

    Returns:
      A `tf.function` that maps `images` to a dictionary with `logits` or `labels`.
    """
    from jax.experimental import jax2tf

    converted = jax2tf.convert(
        lambda *operands: {program.output_name: function(*operands)},
        polymorphic_shapes=[f"({', '.join(program.symbols)})", *(None for _ in arguments)],
        polymorphic_constraints=program.constraints,
        with_gradient=False,
        native_serialization_platforms=platforms,
    )
    shape = [int(axis) if axis.isdigit() else None for axis in program.symbols]
    spec = tf.TensorSpec(shape, dtype or program.dtype, name="images")
    return tf.function(lambda images: converted(images, *arguments), input_signature=[spec], autograph=False)
