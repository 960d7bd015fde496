"""Gradients with few residuals, and ways to tell XLA:CPU when to compute an array and how often."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def with_backward(function: Callable, backward: Callable) -> Callable:
    """Returns `function` with `backward` as its gradient. The residuals are the arguments alone.

    The result can be differentiated in reverse mode only.

    Args:
      function: takes arrays and returns one array.
      backward: takes the same arrays and a cotangent, and returns the tuple of their cotangents.
    """

    @jax.custom_vjp
    def operation(*arrays):
        return function(*arrays)

    def forward(*arrays):
        return function(*arrays), arrays

    operation.defvjp(forward, lambda arrays, cotangent: backward(*arrays, cotangent))
    return operation


def add(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Adds two arrays of one shape. The sum is computed once, whatever the number of its readers.

    XLA:CPU repeats cheap operations in each fusion that reads their result: a reader of one residual sum would compute
    the sums of all previous units again.
    """
    return stored(x + y)


@jax.custom_vjp
def stored(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `x` as an array that XLA:CPU computes once: it does not repeat divisions, and this one is by 1."""
    return x / (1 + jnp.minimum(jnp.abs(x), 0))


stored.defvjp(lambda x: (stored(x), None), lambda _, cotangent: (cotangent,))


def after(array, other):
    """Returns `array` as a value that cannot be used before `other` is computed.

    For a kernel after its own gradient: only the optimizer waits for that gradient, so XLA:CPU would delay it to the
    end of the step, and keep every image until then.

    For an image after its cotangent: the input of BatchNorm, from which the image is computed by cheap operations, is
    kept for a gradient in any case. With no reason to wait, XLA:CPU keeps the image of the forward pass too, or pads or
    transposes it there and keeps that.

    XLA:CPU drops optimization barriers before it schedules; it does not drop zero times a value.
    """
    return array + 0 * other[(0,) * other.ndim].astype(array.dtype)


def transpose_in_order(bilinear: Callable, x: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
    """Returns the cotangents of both arguments of a function that is linear in each; the second one comes first."""
    (kernel_cotangent,) = jax.linear_transpose(lambda kernel: bilinear(x, kernel), kernel)(cotangent)
    kernel = after(kernel, kernel_cotangent)
    (x_cotangent,) = jax.linear_transpose(lambda x: bilinear(x, kernel), x)(cotangent)
    return x_cotangent, kernel_cotangent
