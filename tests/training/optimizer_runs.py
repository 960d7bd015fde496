"""Small parameters, gradients, and what an optimizer makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deeplab_jax import models
from deeplab_jax.config import base_config
from deeplab_jax.training.optimizer import make

PARTS = ("backbone", "aspp", "decoder", "classifier")  # of the network below; a network need not have all


def options(**fields):
    optimizer = base_config().optimizer
    with optimizer.unlocked():  # a config file could not name a part that does not exist either
        optimizer.update({"learning_rate": 0.1, "schedule": "constant"} | fields)
    return optimizer


def run(optimizer, params, gradients, total_steps=100):
    """The parameters after all gradients, and the optimizer state."""
    rule, _ = make(optimizer, total_steps, parts=models.PARTS)
    state = rule.init(params)
    step = jax.jit(rule.update)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def network(dtype=np.float32):
    rng = np.random.default_rng(0)

    def layer():
        return {
            "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 4)), dtype)},
            "norm": {"scale": jnp.asarray(rng.normal(size=4), dtype), "bias": jnp.asarray(rng.normal(size=4), dtype)},
        }

    return {part: layer() for part in PARTS}


def gradients_like(params, count):
    rng = np.random.default_rng(1)
    return [jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params) for _ in range(count)]


def kernel(value):
    """Parameters of a network with a single kernel."""
    return {"aspp": {"kernel": jnp.asarray(value)}}


def buffers(state):
    return [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 0]


def assert_trees_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **tolerance), actual, expected)
