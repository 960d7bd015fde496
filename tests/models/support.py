"""Small networks with random variables."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.config import base_config
from deeplab_jax.models import abstract_variables

CLASSES = 5


def small_model_config(backbone="resnet10_v1_slim", **fields) -> ConfigDict:
    model = base_config().model
    model.backbone = backbone
    model.aspp_channels = model.decoder_channels = 16
    model.low_level_channels = 8
    for name, value in fields.items():
        model[name] = value
    return model


def random_variables(model, seed=0):
    """Variables made by numpy, which compiles nothing. Batch statistics are random too: a skipped norm shows."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        elif name in ("mean", "bias"):
            value = rng.normal(0, 0.1, leaf.shape)
        else:
            value = np.sqrt(2 / np.prod(leaf.shape[:3])) * rng.standard_normal(leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(model))


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def evaluate(model, variables, images):
    """Logits and endpoints, compiled: op by op takes far longer."""
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)


def train(model, variables, images, **rngs):
    """Logits, endpoints and the updated batch statistics of training mode."""
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs=rngs))
    (logits, endpoints), updates = apply(variables, images)
    return logits, endpoints, updates["batch_stats"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
