"""Parameters and multiply-adds of a row's network under the row's protocol."""

import dataclasses
from collections import Counter

import jax
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax import ops
from deeplab_jax.analysis.summary import count_multiply_adds
from deeplab_jax.inference.multi_scale import view_sizes
from deeplab_jax.models import abstract_variables, build_model
from deeplab_jax.papers.configs import evaluation_config
from deeplab_jax.papers.rows import Row


@dataclasses.dataclass(frozen=True)
class Costs:
    """The size of a network, and its work for one image.

    Attributes:
      parameters: number of trainable parameters, in 10^6.
      multiply_adds: multiply-adds of all views of one image, in 10^9, counted as published figures are.
      views: (height, width) of the views.
    """

    parameters: float
    multiply_adds: float
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
    total = 0
    for (height, width), count in Counter(views).items():
        images = jax.ShapeDtypeStruct((1, height, width, model.in_channels), np.uint8)
        counts = count_multiply_adds(model, variables, images)
        total += count * sum(number for (_, kind), number in counts.items() if kind == "conv")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Costs(parameters / 1e6, total / 1e9, tuple(views))
