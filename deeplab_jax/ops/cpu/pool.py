"""Max-pooling as the maximum of strided slices."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops import pool
from deeplab_jax.ops.cpu.scheduling import with_backward
from deeplab_jax.ops.cpu.window import Window


def max_pool(
    x: Float[Array, "batch height width channels"],
    window_shape: Sequence[int],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
) -> Float[Array, "batch out_height out_width channels"]:
    """Computes `deeplab_jax.ops.max_pool`.

    The gradient goes to each pixel from the few windows that contain it. XLA:CPU's select-and-scatter runs on one core
    and takes ten times as long, and the gradient of a chain of maxima longer still.
    """
    window = None
    if all(isinstance(size, int) for size in x.shape):
        window = Window.of(x.shape[1:3], window_shape, strides, padding)
    if window is None:
        return pool.max_pool(x, window_shape, strides, padding)
    return with_backward(functools.partial(_slices, window), functools.partial(_slices_backward, window))(x)


def _views(window, x):
    padded = jnp.pad(x, ((0, 0), *window.pads, (0, 0)), constant_values=-jnp.inf)
    return [view for _, _, view in window.views(padded)]


def _slices(window, x):
    return functools.reduce(jnp.maximum, _views(window, x))


def _slices_backward(window, x, cotangent):
    first, *others = _views(window, x)
    largest, winner = first, jnp.zeros(first.shape, np.min_scalar_type(len(others)))
    for number, view in enumerate(others, 1):
        winner = jnp.where(view > largest, winner.dtype.type(number), winner)
        largest = jnp.maximum(largest, view)
    # Otherwise XLA:CPU repeats their producers in each of the sums.
    winner, cotangent = lax.optimization_barrier((winner, cotangent))

    def won(row, column):
        number = row * window.taps[1] + column
        return jnp.where(winner == number, cotangent, jnp.zeros_like(cotangent))

    return (window.scatter(won),)
