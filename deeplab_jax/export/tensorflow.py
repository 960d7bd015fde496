"""SavedModel and TFLite, by way of jax2tf: StableHLO inside TensorFlow's `XlaCallModule`."""

import os
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax

from deeplab_jax.errors import UserError
from deeplab_jax.export.program import Program
from deeplab_jax.export.stablehlo import PLATFORMS


def save_saved_model(program: Program, folder: pathlib.Path) -> None:
    """Writes a SavedModel whose signature `serving_default` takes `images`.

    Raises:
      UserError: TensorFlow is not installed.
    """
    tf = _tensorflow()
    module = tf.Module()
    # As variables, which TensorFlow stores once in a file of their own; constants would be in every copy of a graph.
    module.weights, structure = jax.tree.flatten(jax.tree.map(tf.Variable, program.variables))

    def apply(images, weights):
        return program.apply(structure.unflatten(weights), images)

    function = _convert(tf, program, apply, PLATFORMS, module.weights)
    tf.saved_model.save(module, os.fspath(folder), signatures={"serving_default": function.get_concrete_function()})


def tflite(program: Program) -> bytes:
    """A .tflite file of float32 operations, for LiteRT. Everything has one shape, which the caller has made sure of.

    Raises:
      UserError: TensorFlow is not installed.
    """
    tf = _tensorflow()
    module = tf.Module()
    module.serving = _convert(tf, program, program.function, ("cpu",))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serving.get_concrete_function()], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return converter.convert()


def _convert(tf: ModuleType, program: Program, function: Callable, platforms: tuple[str, ...], *arguments: Any) -> Any:
    """A `tf.function` from `images` to a dictionary with the `logits` or `labels` of `function(images, *arguments)`."""
    from jax.experimental import jax2tf

    name = "labels" if program.options.argmax else "logits"
    converted = jax2tf.convert(
        lambda *operands: {name: function(*operands)},
        polymorphic_shapes=[f"({', '.join(program.symbols)})", *(None for _ in arguments)],
        polymorphic_constraints=program.constraints,
        with_gradient=False,
        native_serialization_platforms=platforms,
    )
    shape = [int(axis) if axis.isdigit() else None for axis in program.symbols]
    spec = tf.TensorSpec(shape, program.dtype, name="images")
    return tf.function(lambda images: converted(images, *arguments), input_signature=[spec], autograph=False)


def _tensorflow() -> ModuleType:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # not how it was built, and on what it runs
    try:
        import tensorflow
    except ImportError as error:
        raise UserError(
            f"this format is written by TensorFlow, which cannot be imported ({error}); install the extra: "
            "pip install 'deeplab_jax[export]'"
        ) from None
    return tensorflow
