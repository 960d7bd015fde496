"""Normalization by batch statistics."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.precision import accumulator

_PIXELS = (0, 1, 2)  # the axes that statistics are taken over


def batch_norm(
    x: Float[Array, "batch height width channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    epsilon: float,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, " channels"], Float[Array, " channels"]]:
    """Computes scale * (x - mean) / sqrt(variance + epsilon) + bias over a batch (arXiv 1502.03167, algorithm 1).

    Args:
      x: the features, of any float type.
      scale: the factor of each channel.
      bias: the offset of each channel.
      epsilon: added to the variance.

    Returns:
      The normalized features in the dtype of `x`, and the mean and the biased variance of each channel, in float32 or
      wider.
    """
    wide = x.astype(accumulator(x.dtype))
    mean = jnp.mean(wide, _PIXELS)
    # Not `jnp.square`, whose gradient keeps another array of this size, twice the features.
    variance = jnp.maximum(0, jnp.mean(wide * wide, _PIXELS) - mean * mean)  # rounding can make it negative
    factor = lax.rsqrt(variance + epsilon) * scale
    normalized = wide * per_channel(factor) + per_channel(bias - mean * factor)
    return normalized.astype(x.dtype), mean, variance


def per_channel(vector: Float[Array, " channels"]) -> Float[Array, "1 1 1 channels"]:
    """Reshapes one value per channel so that it broadcasts over images."""
    return vector.reshape(1, 1, 1, -1)
