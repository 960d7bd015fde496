"""Normalization by batch statistics, with its gradient in closed form."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops import norm
from deeplab_jax.ops.norm import per_channel

_PIXELS = (0, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: Float[Array, "batch height width channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    epsilon: float,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, " channels"], Float[Array, " channels"]]:
    """Computes `deeplab_jax.ops.batch_norm`.

    The gradient is the closed form of arXiv 1502.03167, section 3. The only array of the size of `x` that it needs is
    `x` itself; differentiating step by step keeps another one and reads both more often. The gradient treats the
    returned statistics as constants: they are for running averages.
    """
    return norm.batch_norm(x, scale, bias, epsilon)


def _forward(x, scale, bias, epsilon):
    normalized, mean, variance = norm.batch_norm(x, scale, bias, epsilon)
    return (normalized, mean, variance), (x, scale, mean, lax.rsqrt(variance + epsilon))


def _backward(epsilon, residuals, cotangents):
    x, scale, mean, inverse = residuals
    wide = x.astype(mean.dtype)
    cotangent = cotangents[0].astype(mean.dtype)
    pixels = x.size // x.shape[-1]
    bias_cotangent = jnp.sum(cotangent, _PIXELS)
    scale_cotangent = jnp.sum(cotangent * (wide - per_channel(mean)), _PIXELS) * inverse
    along = inverse * scale_cotangent / pixels
    # Not `x - mean` a second time: XLA:CPU would compute it once for both, as early as it can, and keep it next to `x`.
    centered = cotangent - wide * per_channel(along) + per_channel(along * mean - bias_cotangent / pixels)
    x_cotangent = centered * per_channel(inverse * scale)
    return x_cotangent.astype(x.dtype), scale_cotangent.astype(scale.dtype), bias_cotangent.astype(scale.dtype)


batch_norm.defvjp(_forward, _backward)
