"""Layers against Flax's own."""

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models.layers import BatchNorm, Conv


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batch_norm_equals_flax_and_takes_its_variables(running, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(1 + rng.normal(size=(2, 5, 6, 3)), dtype)
    ours = BatchNorm(use_running_average=running, decay=0.9, epsilon=1e-3, dtype=dtype)
    flaxs = nn.BatchNorm(use_running_average=running, momentum=0.9, epsilon=1e-3, dtype=dtype)
    initial = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, initial, flaxs.init(jax.random.key(0), x))
    variables = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.asarray(rng.random(leaf.shape), leaf.dtype), initial)
    (output, moved), (expected, expected_moved) = (
        norm.apply(variables, x, mutable=["batch_stats"]) for norm in (ours, flaxs)
    )
    assert output.dtype == dtype
    # float32 with x * a + b in the place of (x - mean) * a; bfloat16 rounds such a difference to one of its 8 bits
    tolerance = 1e-5 if dtype == jnp.float32 else 2**-7
    np.testing.assert_allclose(output.astype(jnp.float32), expected.astype(jnp.float32), rtol=tolerance, atol=tolerance)
    for leaf, expected_leaf in zip(jax.tree.leaves(moved), jax.tree.leaves(expected_moved), strict=True):
        np.testing.assert_allclose(leaf, expected_leaf, rtol=1e-6)
    if running:
        jax.tree.map(np.testing.assert_array_equal, moved["batch_stats"], variables["batch_stats"])


def test_parameters_of_another_shape_are_refused_when_they_are_used():
    x = jnp.ones((1, 4, 4, 3))
    layer = Conv(2, use_bias=True)
    variables = layer.init(jax.random.key(0), x)
    for name, other in (("kernel", jnp.ones((1, 1, 3, 4))), ("bias", jnp.ones(4))):
        with pytest.raises(flax.errors.ScopeParamShapeError, match=name):
            layer.apply({"params": variables["params"] | {name: other}}, x)
    with pytest.raises(flax.errors.ScopeParamNotFoundError, match="bias"):
        layer.apply({"params": {"kernel": variables["params"]["kernel"]}}, x)


def test_the_gradient_of_a_bias_is_summed_in_float32():
    layer = Conv(1, use_bias=True, dtype=jnp.bfloat16)
    x = jnp.zeros((1, 1, 257, 1), jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    gradient = jax.grad(lambda variables: layer.apply(variables, x).astype(jnp.float32).sum())(variables)
    assert gradient["params"]["bias"] == 257  # to which 8 bits have no neighbor but 256 and 258
