"""Matrix products of pixels and weights over the last axis."""

import jax.numpy as jnp
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
    """Returns the gradient of `multiply` with respect to the weights."""
    return jnp.matmul(flat(x).T, flat(cotangent), preferred_element_type=accumulator(x.dtype))
