"""Parameters and multiply-adds of a row's network under the row's protocol."""

import dataclasses
import math
from collections import Counter
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax import ops
from deeplab_jax.analysis.summary import count_multiply_adds
from deeplab_jax.inference.multi_scale import view_sizes
from deeplab_jax.models import SegmentationNetwork, abstract_variables, build_model
from deeplab_jax.papers.configs import evaluation_config
from deeplab_jax.papers.rows import Row
from deeplab_jax.parallel.jaxpr import equations


@dataclasses.dataclass(frozen=True)
class Costs:
    """The size of a network, and its work for one image.

    Attributes:
      parameters: number of trainable parameters, in 10^6.
      multiply_adds: multiply-adds of all views of one image, in 10^9, without resizing.
      padded: the same, and the work on the padding that TensorFlow's atrous convolutions add. The DeepLab papers seem
        to count it: see `padding_of_atrous`.
      views: (height, width) of the views.
    """

    parameters: float
    multiply_adds: float
    padded: float
    views: tuple[tuple[int, int], ...]


def row_costs(row: Row) -> Costs:
    """Counts the parameters and multiply-adds of a row under its protocol. Computes nothing.

    Raises:
      UserError: no network has the row's fields.
    """
    return config_costs(evaluation_config(row), row.classes)


def config_costs(config: ConfigDict, num_classes: int) -> Costs:
    """Counts the parameters and multiply-adds of a config's network in an evaluation. Computes nothing.

    Args:
      config: a whole config.
      num_classes: number of classes.

    Raises:
      UserError: no network has the config's fields.
    """
    model = build_model(config.model, num_classes)
    variables = abstract_variables(model)
    size = config.eval.image_size if config.eval.protocol == "whole" else None
    views = view_sizes(size or config.data.image_size, config.eval.scales, config.eval.flip)
    model = model.clone(ops=ops.XLA, published_order=True)
    total = padding = 0
    for (height, width), count in Counter(views).items():
        images = jax.ShapeDtypeStruct((1, height, width, model.in_channels), np.uint8)
        counts = count_multiply_adds(model, variables, images)
        total += count * sum(number for (_, kind), number in counts.items() if kind != "resize")
        padding += count * padding_of_atrous(model, variables, images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Costs(parameters / 1e6, total / 1e9, (total + padding) / 1e9, tuple(views))


def padding_of_atrous(model: SegmentationNetwork, variables: Any, images: Any) -> int:
    """Counts the multiply-adds that TensorFlow's atrous convolutions compute in addition, on padding.

    `tf.nn.with_space_to_batch` splits the padded features into rate x rate maps, one per remainder, and pads them to
    the same size: a height of n becomes the next multiple of the rate. A plain atrous convolution computes n rows.

    Args:
      model: the network.
      variables: its variables, or their shapes.
      images: a batch of images, or its shape.
    """
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0])(variables, images)
    additional = 0
    for _, equation in equations(program.jaxpr):
        if equation.primitive.name != "conv_general_dilated":
            continue
        kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        spec = equation.params["dimension_numbers"]
        per_output = math.prod(kernel) // kernel[spec.rhs_spec[0]]
        extents = [output[axis] for axis in spec.out_spec[2:]]
        computed = [
            rate * math.ceil(extent / rate)
            for extent, rate in zip(extents, equation.params["rhs_dilation"], strict=True)
        ]
        others = math.prod(output) // math.prod(extents)
        additional += per_output * others * (math.prod(computed) - math.prod(extents))
    return additional
