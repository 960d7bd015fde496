"""Max-pooling over NHWC images."""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.padding import explicit_padding


def max_pool(
    x: Float[Array, "batch height width channels"],
    *,
    window: int,
    stride: int,
    padding: str = "symmetric",
    formulation: str = "auto",
) -> Float[Array, "batch out_height out_width channels"]:
    """The largest value of each window, padding never winning; the output has ceil(size / stride) pixels.

    On CPUs it is the maximum of strided slices, whose gradient is a handful of selects: the gradient of XLA's
    windowed reduction (select-and-scatter) runs on one core there. Where several values of a window are equal the
    slices share the gradient among them, XLA's operation gives it to the first.
    """
    pads = ((0, 0), *explicit_padding(padding, x.shape[1:3], (window, window), stride=stride), (0, 0))

    def plain(x):
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
        )  # -inf is the identity that lax differentiates

    def slices(x):
        padded = jnp.pad(x, pads, constant_values=-jnp.inf)
        views = []
        for row in range(window):
            for column in range(window):
                view = padded[:, row:, column:][:, ::stride, ::stride]
                views.append(view)
        height = -(-x.shape[1] // stride)
        width = -(-x.shape[2] // stride)
        return functools.reduce(jnp.maximum, [view[:, :height, :width] for view in views])

    if formulation == "plain":
        return plain(x)
    return lax.platform_dependent(x, cpu=slices, default=plain)
