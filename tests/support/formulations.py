"""What tests of operations share: random arguments, and that a formulation equals the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

# In float64, sums of a few hundred products of order 1 round by about 1e-14; 1e-9 leaves room and catches any real
# difference of a formulation.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
few = settings(max_examples=6, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(1, 13), st.integers(1, 13))


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def value_and_gradients(operation, formulation):
    """A function of a cotangent and an operation's arguments."""

    def run(cotangent, *arguments):
        output, pullback = jax.vjp(lambda *xs: operation(*xs, formulation=formulation), *arguments)
        return output, *pullback(cotangent)

    return run


def random_cotangent(operation, *arguments):
    return random(jax.eval_shape(lambda *xs: operation(*xs, formulation="plain"), *arguments).shape, seed=9)


def assert_formulations_equal(operation, *arguments):
    """Values and gradients with respect to every argument, for a random cotangent."""
    arguments = (random_cotangent(operation, *arguments), *arguments)
    results = [jax.jit(value_and_gradients(operation, kind))(*arguments) for kind in ("auto", "plain")]
    for fast, plain in zip(*results, strict=True):
        assert fast.dtype == jnp.float64
        np.testing.assert_allclose(fast, plain, **TOLERANCE)
