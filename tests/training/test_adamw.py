"""AdamW against numbers of PyTorch, optax's and a formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deeplab_jax.training.optimizer import make_schedule
from tests.training.optimizer_runs import (
    assert_trees_close,
    gradients_like,
    kernel,
    network,
    options,
    run,
)


def adamw(w, gradients, rates, *, beta1, beta2, decay):
    """arXiv 1711.05101, algorithm 2, with the rate in both terms."""
    mean, square = np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g**2
        step = mean / (1 - beta1**t) / (np.sqrt(square / (1 - beta2**t)) + 1e-8)
        w = w - rate * (step + decay * w)
    return w


def test_adam_with_decoupled_decay_is_adamw_while_the_rate_changes(float64):
    rng = np.random.default_rng(0)
    w, gradients = rng.normal(size=(3, 4)), list(rng.normal(size=(6, 3, 4)))
    optimizer = options(
        name="adam", momentum=0.8, schedule="cosine", weight_decay=0.02,
        weight_decay_rule="decoupled_all",
    )  # fmt: skip
    result, _ = run(optimizer, kernel(w), [kernel(g) for g in gradients], total_steps=8)
    rates = [0.1 * 0.5 * (1 + np.cos(np.pi * t / 8)) for t in range(6)]
    expected = adamw(w, gradients, rates, beta1=0.8, beta2=0.999, decay=0.02)
    np.testing.assert_allclose(result["aspp"]["kernel"], expected, rtol=1e-9)  # float64, a dozen roundings


SEGFORMER = {"name": "adam", "schedule": "poly", "poly_power": 1.0, "weight_decay_rule": "decoupled_kernels"}


def test_the_recipe_of_segformer_reproduces_the_numbers_of_pytorch(float64):
    # What torch.optim.AdamW of PyTorch 2.14 makes of these in float64: one group per variable, the rate of the
    # classifier times 10, that of its bias times 20, a weight decay of .05 for kernels and none for the others, and
    # rates of .1 and .075 in the two steps.
    params = {
        "backbone": {"conv": {"kernel": jnp.array([3.0, -4.0])}, "norm": {"scale": jnp.array([1.0, 2.0])}},
        "classifier": {"kernel": jnp.array([0.5, -0.25]), "bias": jnp.array([0.125, 1.0])},
    }
    gradients = [
        {
            "backbone": {"conv": {"kernel": jnp.array([0.3, 0.4])}, "norm": {"scale": jnp.array([-1.0, 0.5])}},
            "classifier": {"kernel": jnp.array([0.1, -0.2]), "bias": jnp.array([2.0, -0.01])},
        },
        {
            "backbone": {"conv": {"kernel": jnp.array([-0.6, 0.1])}, "norm": {"scale": jnp.array([0.2, 0.5])}},
            "classifier": {"kernel": jnp.array([0.3, 0.2]), "bias": jnp.array([-1.0, 0.02])},
        },
    ]
    optimizer = options(
        **SEGFORMER, weight_decay=0.05, bias_multiplier=2.0, learning_rate_multipliers={"classifier": 10.0}
    )
    result, _ = run(optimizer, params, gradients, total_steps=4)
    expected = {
        "backbone": {
            "conv": {"kernel": [2.9016390172697473, -4.12699481039787]},
            "norm": {"scale": [1.138326954257129, 1.8250000035000005]},
        },
        "classifier": {
            "kernel": [-1.1936482122080778, 0.6944325196381606],
            "bias": [-2.274505546963527, 2.4508430567122055],
        },
    }
    expected = jax.tree.map(np.array, expected, is_leaf=lambda leaf: isinstance(leaf, list))
    assert_trees_close(result, expected, rtol=1e-7)  # the rate and beta 2 are float32 constants inside optax


def test_decoupled_decay_of_kernels_is_the_adamw_of_optax_with_a_mask(float64):
    params = network(np.float64)
    gradients = gradients_like(params, 4)
    optimizer = options(**SEGFORMER, weight_decay=0.05)
    result, _ = run(optimizer, params, gradients, total_steps=9)
    mask = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    rule = optax.adamw(make_schedule(optimizer, 9), weight_decay=0.05, mask=mask)
    state = rule.init(params)
    for gradient in gradients:
        updates, state = rule.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    assert_trees_close(result, params, rtol=1e-7)  # as above
