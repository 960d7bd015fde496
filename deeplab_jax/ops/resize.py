"""Bilinear resizing of NHWC images and of logits to each image's own size."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from deeplab_jax.ops.platform import UNCHANGED, on_cpu
from deeplab_jax.ops.precision import accumulator

_MOST_PHASES = 16


def resize_bilinear(
    x: Float[Array, "batch height width channels"],
    size: Sequence[Any],
    *,
    align_corners: bool = False,
    formulation: str = "auto",
) -> Float[Array, "batch out_height out_width channels"]:
    """Resizes to `size` (height, width) by bilinear interpolation, without antialiasing.

    The plain form multiplies by dense matrices of weights. On CPUs, where both axes grow by a whole factor, each output
    pixel is a weighted sum of its two neighbors: the matrices are nearly all zeros, and products with them come with
    transposed copies of the large result. With the rows split over devices, where the height grows by a whole factor,
    rows are interpolated by a convolution, for which a device needs a row of each neighbor; in other cases every
    device gathers all rows.

    Args:
      x: what to resize.
      size: height and width of the result.
      align_corners: False samples at half-pixel centers (TensorFlow 2, PyTorch's default); True maps the corner
        pixels onto each other (research/deeplab), which suits sizes of k * stride + 1.
      formulation: see `deeplab_jax.ops`.
    """
    height, width = size
    if x.shape[1:3] == (height, width):
        return x

    def plain(x):
        if not align_corners:
            shape = (x.shape[0], height, width, x.shape[-1])
            return jax.image.resize(x, shape, "bilinear", antialias=False)
        rows = _align_corners_weights(x.shape[1], height, x.dtype)
        columns = _align_corners_weights(x.shape[2], width, x.dtype)
        return _apply(x, rows, columns)

    def plain_backward(x, cotangent):
        return jax.linear_transpose(plain, x)(cotangent)

    if formulation == "plain":
        return plain(x)
    axes = [(1, height), (2, width)]
    factors = [_whole_factor(x.shape[axis], out_size, align_corners) for axis, out_size in axes]
    if formulation == "spatial" and not align_corners and height % x.shape[1] == 0:
        x = _enlarge_rows(x, height // x.shape[1])
        return jax.image.resize(x, (*x.shape[:2], width, x.shape[-1]), "bilinear", antialias=False)
    if formulation in UNCHANGED or None in factors:
        return plain(x)
    wide = accumulator(x.dtype)

    def neighbors(x):
        y = x.astype(wide)
        for (axis, out_size), factor in reversed(list(zip(axes, factors, strict=True))):  # fewer long copies last
            y = lax.optimization_barrier(_enlarge(y, axis, factor, out_size, align_corners))
        return y.astype(x.dtype)

    def neighbors_backward(x, cotangent):
        y = cotangent.astype(wide)
        for (axis, _), factor in zip(axes, factors, strict=True):
            y = lax.optimization_barrier(_enlarge_transposed(y, axis, factor, x.shape[axis], align_corners))
        return (y.astype(x.dtype),)

    return on_cpu(neighbors, neighbors_backward, plain=plain, plain_backward=plain_backward)(x)


def resize_to_sizes(
    x: Float[Array, "batch height width channels"],
    extents: Shaped[Array, "batch 2"],
    sizes: Shaped[Array, "batch 2"],
    canvas: Sequence[int],
) -> Float[Array, "batch canvas_height canvas_width channels"]:
    """Resizes the top left part of each element to a size of its own (half-pixel bilinear), on a common canvas.

    Extents and sizes are data, not shapes: one compiled program serves images of any size up to the canvas.

    Args:
      x: what to resize.
      extents: height and width of the part of each element that holds its image; the rest is padding.
      sizes: height and width that this part gets, at the top left of the canvas. The canvas' other pixels repeat
        its border.
      canvas: height and width of the result.
    """
    rows = half_pixel_weights(x.shape[1], extents[:, 0], sizes[:, 0], canvas[0], x.dtype)
    columns = half_pixel_weights(x.shape[2], extents[:, 1], sizes[:, 1], canvas[1], x.dtype)
    return jax.vmap(lambda image, row, column: _apply(image[None], row, column)[0])(x, rows, columns)


def _apply(x, rows, columns):
    """Interpolates rows, then columns, with dense weights: (out_height, height) and (out_width, width)."""
    precision = lax.Precision.HIGHEST  # bfloat16 passes on TPU would move the weights by 1e-2
    x = jnp.einsum("bhwc,Hh->bHwc", x, rows, precision=precision)
    return jnp.einsum("bHwc,Ww->bHWc", x, columns, precision=precision)


def _triangle(positions, last, size, dtype):
    """Bilinear weights of `size` source pixels for sample positions in source pixels, clamped to [0, last]."""
    positions = jnp.clip(positions, 0, last)[..., None]
    grid = jnp.arange(size, dtype=positions.dtype).reshape((1,) * (positions.ndim - 1) + (size,))
    return jnp.maximum(0, 1 - jnp.abs(positions - grid)).astype(dtype)


def half_pixel_weights(size, extents, out_sizes, canvas, dtype):
    """Weights (batch, canvas, size) that resize the first `extents` of `size` pixels to the first `out_sizes`."""
    extents, out_sizes = extents.astype(dtype)[:, None], out_sizes.astype(dtype)[:, None]
    out = jnp.minimum(jnp.arange(canvas, dtype=dtype)[None], out_sizes - 1)
    return _triangle((out + 0.5) * (extents / out_sizes) - 0.5, extents - 1, size, dtype)


def axis_weights(size, out_size, dtype, *, align_corners):
    """Weights (out_size, size) of one axis of `resize_bilinear`."""
    if align_corners:
        return _align_corners_weights(size, out_size, dtype)
    return half_pixel_weights(size, jnp.array([size]), jnp.array([out_size]), out_size, dtype)[0]


def _align_corners_weights(size, out_size, dtype):
    scale = (size - 1) / (out_size - 1) if out_size > 1 else 0.0
    return _triangle(jnp.arange(out_size, dtype=dtype) * scale, size - 1, size, dtype)


def _whole_factor(size, out_size, align_corners):
    """By what whole number an axis grows, None if by none (or one so large that a sum for each phase is too many)."""
    grown, whole = (out_size - 1, size - 1) if align_corners else (out_size, size)
    if whole == 0 or grown % whole or grown // whole > _MOST_PHASES:
        return None
    return grown // whole


def _phases(factor, align_corners):
    """For output pixel `factor * i + phase`: the first of its two neighbors, from i, and the second one's weight."""
    for phase in range(factor):
        position = phase / factor if align_corners else (phase + 0.5) / factor - 0.5
        yield math.floor(position), position - math.floor(position)


def _enlarge(x, axis, factor, out_size, align_corners):
    """Interpolates one axis; beyond the ends the border repeats."""
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


def _enlarge_rows(x, factor):
    """Interpolates the rows, at half-pixel centers, by a depthwise convolution with a triangle.

    The convolution reads `factor - 1` zeros between the rows. Output row o lies at (o + 0.5) / factor - 0.5, so its
    tap for an input row i depends on o - factor * i alone. Beyond the ends the convolution finds nothing where the
    border should repeat: there an output row has the one neighbor that exists, whose weight becomes one.
    """
    height, channels = x.shape[1], x.shape[-1]
    distances = np.arange(-2 * factor, 2 * factor + 1)
    weights = np.maximum(0, 1 - np.abs(distances + 0.5 - factor / 2) / factor)
    distances, weights = distances[weights > 0], weights[weights > 0]
    kernel = np.broadcast_to(weights[::-1].reshape(-1, 1, 1, 1), (len(weights), 1, 1, channels))
    y = lax.conv_general_dilated(
        x,
        jnp.asarray(kernel, x.dtype),
        (1, 1),
        ((distances[-1], factor - 1 - distances[0]), (0, 0)),
        lhs_dilation=(factor, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
        precision=lax.Precision.HIGHEST,
    )
    totals = np.zeros(height * factor)
    for row in range(height):
        reached = row * factor + distances
        inside = (reached >= 0) & (reached < len(totals))
        totals[reached[inside]] += weights[inside]
    return y * jnp.asarray(1 / totals, x.dtype).reshape(1, -1, 1, 1)


def _enlarge_transposed(cotangent, axis, factor, size, align_corners):
    """The transpose of `_enlarge`: every output pixel's cotangent goes to its two neighbors."""
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
        # Moved one on; what would leave the image belongs to the border.
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
