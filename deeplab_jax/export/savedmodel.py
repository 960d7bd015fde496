"""TensorFlow's SavedModel."""

import os
import pathlib

import jax

from deeplab_jax.export.program import Program
from deeplab_jax.export.stablehlo import PLATFORMS
from deeplab_jax.export.tensorflow_function import import_tensorflow, to_tf_function


def save(program: Program, folder: pathlib.Path) -> None:
    """Writes a SavedModel whose signature `serving_default` takes `images`.

    Raises:
      UserError: TensorFlow is not installed.
    """
    tf = import_tensorflow()
    module = tf.Module()
    # TensorFlow stores variables once, in a file of their own. Constants would be in every copy of the graph.
    module.weights, structure = jax.tree.flatten(jax.tree.map(tf.Variable, program.variables))

    def apply(images, weights):
        return program.apply(structure.unflatten(weights), images)

    function = to_tf_function(tf, program, apply, PLATFORMS, module.weights)
    tf.saved_model.save(module, os.fspath(folder), signatures={"serving_default": function.get_concrete_function()})
