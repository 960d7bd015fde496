"""Matrix products of pixels and weights over the last axis."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.precision import accumulator


def flat(x: Float[Array, "... channels"]) -> Float[Array, "pixels channels"]:
    """Flattens all pixels into one axis."""
    return x.reshape(-1, x.shape[-1])


def multiply(
    x: Float[Array, "... channels"], weights: Float[Array, "channels features"]
) -> Float[Array, "... features"]:
    """Multiplies over the last axis, with a result in float32 or wider.

    The product is of 2-D arrays, since XLA:CPU runs the gradients of a product of 4-D arrays slower. CPUs have
    instructions for bfloat16 factors with a float32 result; for a bfloat16 result XLA:CPU converts the factors to
    float32 first.
    """
    product = jnp.matmul(flat(x), weights, preferred_element_type=accumulator(x.dtype))
    return product.reshape(*x.shape[:-1], -1)


def weight_gradient(
    x: Float[Array, "... channels"], cotangent: Float[Array, "... features"]
) -> Float[Array, "channels features"]:
    """Returns the gradient of `multiply` with respect to the weights.

    XLA:CPU transposes the first factor of a product over pixels, at a cost that grows with its channels, so the
    narrower factor comes first. (1024 to 256 channels, 4,096 pixels: 213 GFLOP/s, swapped 325; 256 to 1024: 338,
    swapped 212.) The barrier keeps XLA from swapping the factors back.
    """
    pixels, cotangents = flat(x), flat(cotangent)
    dtype = accumulator(x.dtype)
    if pixels.shape[-1] > cotangents.shape[-1]:
        return lax.optimization_barrier(jnp.matmul(cotangents.T, pixels, preferred_element_type=dtype)).T
    return jnp.matmul(pixels.T, cotangents, preferred_element_type=dtype)
