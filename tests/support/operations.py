"""Random arguments for operations, and the comparison of a set of operations with plain XLA."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from deeplab_jax import ops

CPU = ops.select("cpu")
# In float64, sums of a few hundred products of order 1 round by about 1e-14; 1e-9 leaves room and catches any real
# difference.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
few = settings(max_examples=6, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(1, 13), st.integers(1, 13))


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def conv(x, kernel, *, using=CPU, stride=1, rate=1, padding="symmetric", groups=1):
    """A convolution as the layers of the network call it."""
    return using.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ops.lax_padding(padding, kernel.shape[:2], rate=rate),
        rhs_dilation=(rate, rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def depthwise_conv(x, kernel, **options):
    return conv(x, kernel, groups=x.shape[-1], **options)


def max_pool(x, *, using=CPU, window, stride, padding="symmetric"):
    return using.max_pool(x, (window, window), (stride, stride), ops.lax_padding(padding, (window, window)))


def resize(x, *, using=CPU, size, align_corners=False):
    return using.resize_bilinear(x, size, align_corners=align_corners)


def value_and_gradients(operation, using):
    """A function of a cotangent and an operation's arguments."""

    def run(cotangent, *arguments):
        output, pullback = jax.vjp(lambda *xs: operation(*xs, using=using), *arguments)
        return output, *pullback(cotangent)

    return run


def random_cotangent(operation, *arguments):
    return random(jax.eval_shape(lambda *xs: operation(*xs, using=ops.XLA), *arguments).shape, seed=9)


def assert_equals_xla(operation, *arguments):
    """Compares values and gradients with respect to every argument, for a random cotangent."""
    cotangent = random_cotangent(operation, *arguments)

    @jax.jit  # one program: compiling two takes longer
    def both(*arguments):
        return [value_and_gradients(operation, using)(*arguments) for using in (CPU, ops.XLA)]

    for fast, plain in zip(*both(cotangent, *arguments), strict=True):
        assert fast.dtype == jnp.float64
        np.testing.assert_allclose(fast, plain, **TOLERANCE)
