"""Max-pooling over NHWC images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.padding import explicit_padding, lax_padding
from deeplab_jax.ops.platform import UNCHANGED, on_cpu


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
    pads = explicit_padding(padding, x.shape[1:3], (window, window), stride=stride)
    out_size = [-(-extent // stride) for extent in x.shape[1:3]]

    def plain(x):
        around = lax_padding(padding, pads)
        around = around if isinstance(around, str) else ((0, 0), *around, (0, 0))
        # -inf is the identity that lax differentiates
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), around)

    def plain_backward(x, cotangent):
        return jax.vjp(plain, x)[1](cotangent)

    def views(x):
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
        height, width = (stride * (extent - 1) + 1 for extent in out_size)
        return [
            padded[:, row : row + height : stride, column : column + width : stride]
            for row in range(window)
            for column in range(window)
        ]

    def slices(x):
        return functools.reduce(jnp.maximum, views(x))

    def slices_backward(x, cotangent):
        first, *others = views(x)
        largest, winner = first, jnp.zeros(first.shape, np.min_scalar_type(window**2 - 1))
        for number, view in enumerate(others, 1):
            winner = jnp.where(view > largest, winner.dtype.type(number), winner)
            largest = jnp.maximum(largest, view)
        winner, cotangent = lax.optimization_barrier((winner, cotangent))  # not recomputed for every tap below

        # Input pixel `stride * u + phase` is tap `tap` of output pixel `u + shift`, for the taps of that phase.
        (top, _), (left, _) = pads
        rows = []
        for row_phase in range(stride):
            columns = []
            for column_phase in range(stride):
                total = jnp.zeros((len(x), *out_size, x.shape[-1]), x.dtype)
                for row, row_shift in _taps_of_phase(row_phase + top, window, stride):
                    for column, column_shift in _taps_of_phase(column_phase + left, window, stride):
                        won = jnp.where(winner == row * window + column, cotangent, jnp.zeros_like(cotangent))
                        total += _shift(_shift(won, 1, row_shift), 2, column_shift)
                columns.append(total)
            rows.append(jnp.stack(columns, axis=3))
        interleaved = jnp.stack(rows, axis=2).reshape(
            len(x), stride * out_size[0], stride * out_size[1], x.shape[-1]
        )  # batch, height, row phase, width, column phase, channels
        return (interleaved[:, : x.shape[1], : x.shape[2]],)

    if formulation in UNCHANGED:
        return plain(x)
    return on_cpu(slices, slices_backward, plain=plain, plain_backward=plain_backward)(x)


def _taps_of_phase(position: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Taps (of one axis) that meet padded pixel `position` of every stride, and how far on their windows start."""
    return [(tap, (position - tap) // stride) for tap in range(position % stride, window, stride)]


def _shift(x, axis, distance):
    """x[i + distance] at i, zero beyond the ends."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (-distance, distance, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)
