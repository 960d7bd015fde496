"""Normalization by the statistics of the batch."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.precision import accumulator

_PIXELS = (0, 1, 2)  # the axes that statistics are taken over


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: Float[Array, "batch height width channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    epsilon: float,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, " channels"], Float[Array, " channels"]]:
    """scale * (x - mean) / sqrt(variance + epsilon) + bias over a batch (arXiv 1502.03167, algorithm 1).

    The gradient is the paper's, in closed form (section 3): of the size of `x` it needs nothing but `x` itself, where
    differentiation step by step keeps another array and reads both more often. Reverse mode only.

    Args:
      x: the features, of any float type.
      scale, bias: of each channel.
      epsilon: added to the variance.

    Returns:
      The normalized features in the dtype of `x`, and the mean and the (biased) variance of each channel, in float32 or
      wider. The gradient takes these two for constants: they are for running averages.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    wide = x.astype(accumulator(x.dtype))
    mean = jnp.mean(wide, _PIXELS)
    variance = jnp.maximum(0, jnp.mean(jnp.square(wide), _PIXELS) - jnp.square(mean))  # rounding can make it negative
    inverse = lax.rsqrt(variance + epsilon)
    factor = inverse * scale
    normalized = wide * _of_channels(factor) + _of_channels(bias - mean * factor)
    return (normalized.astype(x.dtype), mean, variance), (x, scale, mean, inverse)


def _backward(epsilon, kept, cotangents):
    x, scale, mean, inverse = kept
    wide = x.astype(mean.dtype)
    cotangent = cotangents[0].astype(mean.dtype)
    pixels = x.size // x.shape[-1]
    of_bias = jnp.sum(cotangent, _PIXELS)
    of_scale = jnp.sum(cotangent * (wide - _of_channels(mean)), _PIXELS) * inverse
    along = inverse * of_scale / pixels
    # `x - mean` a second time, and XLA:CPU computes it once for both, as soon as it can, and keeps it beside `x`.
    centered = cotangent - wide * _of_channels(along) + _of_channels(along * mean - of_bias / pixels)
    of_x = centered * _of_channels(inverse * scale)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(scale.dtype)


batch_norm.defvjp(_forward, _backward)


def _of_channels(vector):
    return vector.reshape(1, 1, 1, -1)
