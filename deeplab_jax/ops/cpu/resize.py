"""Bilinear resizing by whole factors as weighted sums of neighbors."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops import resize
from deeplab_jax.ops.cpu.scheduling import computed_once, with_backward
from deeplab_jax.ops.precision import accumulator

_MOST_PHASES = 16


def resize_bilinear(
    x: Float[Array, "batch height width channels"], size: Sequence[Any], *, align_corners: bool = False
) -> Float[Array, "batch out_height out_width channels"]:
    """Computes `deeplab_jax.ops.resize_bilinear`.

    If both axes grow by a whole factor, each output pixel is a weighted sum of its two neighbors along each axis. The
    plain operation multiplies by matrices of weights that are nearly all zeros, and the products come with transposed
    copies of the large result.
    """
    axes = [(1, size[0]), (2, size[1])]
    if x.shape[1:3] == (*size,) or not all(isinstance(extent, int) for extent in (*x.shape, *size)):
        return resize.resize_bilinear(x, size, align_corners=align_corners)
    factors = [_whole_factor(x.shape[axis], extent, align_corners) for axis, extent in axes]
    if None in factors:
        return resize.resize_bilinear(x, size, align_corners=align_corners)
    steps = [(axis, factor, x.shape[axis], extent) for (axis, extent), factor in zip(axes, factors, strict=True)]
    forward, backward = (functools.partial(function, steps, align_corners) for function in (_neighbors, _transposed))
    return with_backward(forward, backward)(x)


def _neighbors(steps, align_corners, x):
    y = x.astype(accumulator(x.dtype))
    for axis, factor, _, out_size in reversed(steps):  # fewer long copies last
        y = computed_once(_enlarge(y, axis, factor, out_size, align_corners))
    return y.astype(x.dtype)


def _transposed(steps, align_corners, x, cotangent):
    y = cotangent.astype(accumulator(x.dtype))
    for axis, factor, size, _ in steps:
        y = computed_once(_enlarge_transposed(y, axis, factor, size, align_corners))
    return (y.astype(x.dtype),)


def _whole_factor(size, out_size, align_corners):
    """Returns the whole factor by which an axis grows, or None if there is none or it needs too many phases."""
    grown, whole = (out_size - 1, size - 1) if align_corners else (out_size, size)
    if whole == 0 or grown % whole or grown // whole > _MOST_PHASES:
        return None
    return grown // whole


def _phases(factor, align_corners):
    """Yields, per phase of output pixels `factor * i + phase`, the first neighbor's offset and the second's weight."""
    for phase in range(factor):
        position = phase / factor if align_corners else (phase + 0.5) / factor - 0.5
        yield math.floor(position), position - math.floor(position)


def _enlarge(x, axis, factor, out_size, align_corners):
    """Interpolates one axis. Beyond the ends the border repeats."""
    size = x.shape[axis]
    padded = jnp.concatenate(
        [lax.slice_in_dim(x, 0, 1, axis=axis), x, lax.slice_in_dim(x, size - 1, size, axis=axis)], axis=axis
    )
    phases = []
    for first, weight in _phases(factor, align_corners):
        one, two = (lax.slice_in_dim(padded, 1 + start, 1 + start + size, axis=axis) for start in (first, first + 1))
        phases.append(one * (1 - weight) + two * weight)
    interleaved = jnp.stack(phases, axis=axis + 1).reshape(*x.shape[:axis], size * factor, *x.shape[axis + 1 :])
    return lax.slice_in_dim(interleaved, 0, out_size, axis=axis)


def _enlarge_transposed(cotangent, axis, factor, size, align_corners):
    """Transposes `_enlarge`: the cotangent of each output pixel goes to its two neighbors."""
    missing = size * factor - cotangent.shape[axis]
    cotangent = _pad_axis(cotangent, axis, 0, missing)
    shape = (*cotangent.shape[:axis], size, factor, *cotangent.shape[axis + 1 :])
    by_phase = cotangent.reshape(shape)
    sums = {}  # by the neighbor's distance: -1, 0, 1
    for phase, (first, weight) in enumerate(_phases(factor, align_corners)):
        of_phase = lax.index_in_dim(by_phase, phase, axis + 1, keepdims=False)
        for distance, share in ((first, 1 - weight), (first + 1, weight)):
            if share:
                sums[distance] = sums.get(distance, 0) + of_phase * share
    total = 0
    for distance, part in sums.items():
        if distance == 0:
            total += part
            continue
        # Shifted by one pixel; what would leave the image belongs to the border.
        start, stop = (1, size) if distance < 0 else (0, size - 1)
        end = (0, 1) if distance < 0 else (size - 1, size)
        moved = lax.slice_in_dim(part, start, stop, axis=axis)
        total += _pad_axis(moved, axis, *((0, 1) if distance < 0 else (1, 0)))
        total += _pad_axis(lax.slice_in_dim(part, *end, axis=axis), axis, end[0], size - end[1])
    return total


def _pad_axis(x, axis, before, after):
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (before, after, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)
