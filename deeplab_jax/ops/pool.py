"""Max-pooling over NHWC images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.padding import lax_padding
from deeplab_jax.ops.platform import UNCHANGED, on_cpu
from deeplab_jax.ops.window import Window


def max_pool(
    x: Float[Array, "batch height width channels"],
    *,
    window: int,
    stride: int,
    padding: str = "symmetric",
    formulation: str = "auto",
) -> Float[Array, "batch out_height out_width channels"]:
    """The largest value of each window, padding never winning; the output has ceil(size / stride) pixels.

    Where several values of a window are equal the first one has the gradient. On CPUs it is the maximum of strided
    slices, and its gradient goes to each pixel from the few windows that contain it: XLA:CPU's select-and-scatter runs
    on one core and takes ten times as long, and the gradient of a chain of maxima longer still.

    Args:
      x: the features.
      window: pixels along both axes.
      stride: of the window, in pixels along both axes.
      padding: one of `PADDINGS`, see `explicit_padding`.
      formulation: see `deeplab_jax.ops`.
    """
    windows = Window(x.shape[1:3], (window, window), stride=stride, rate=1, padding=padding)
    pads = windows.pads

    def plain(x):
        around = lax_padding(padding, pads)
        around = around if isinstance(around, str) else ((0, 0), *around, (0, 0))
        # -inf is the identity that lax differentiates
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), around)

    def plain_backward(x, cotangent):
        return jax.vjp(plain, x)[1](cotangent)

    def views(x):
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
        return [view for _, _, view in windows.views(padded)]

    def slices(x):
        return functools.reduce(jnp.maximum, views(x))

    def slices_backward(x, cotangent):
        first, *others = views(x)
        largest, winner = first, jnp.zeros(first.shape, np.min_scalar_type(window**2 - 1))
        for number, view in enumerate(others, 1):
            winner = jnp.where(view > largest, winner.dtype.type(number), winner)
            largest = jnp.maximum(largest, view)
        winner, cotangent = lax.optimization_barrier((winner, cotangent))  # not recomputed for every tap below

        def won(row, column):
            return jnp.where(winner == row * window + column, cotangent, jnp.zeros_like(cotangent))

        return (windows.scatter(won),)

    if formulation in UNCHANGED:
        return plain(x)
    return on_cpu(slices, slices_backward, plain=plain, plain_backward=plain_backward)(x)
