"""Bilinear resizing of NHWC images, to one size or to a size per image."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped


def resize_bilinear(
    x: Float[Array, "batch height width channels"], size: Sequence[Any], *, align_corners: bool = False
) -> Float[Array, "batch out_height out_width channels"]:
    """Resizes to `size` (height, width) by bilinear interpolation, without antialiasing.

    Args:
      x: the images or features.
      size: height and width of the result; they may be symbolic dimensions of `jax.export`.
      align_corners: False samples at half-pixel centers (TensorFlow 2, PyTorch's default); True maps the corner
        pixels onto each other (research/deeplab), which suits sizes of k * stride + 1.
    """
    height, width = size
    if x.shape[1:3] == (height, width):
        return x
    if not align_corners:
        return jax.image.resize(x, (x.shape[0], height, width, x.shape[-1]), "bilinear", antialias=False)
    rows = _align_corners_weights(x.shape[1], height, x.dtype)
    columns = _align_corners_weights(x.shape[2], width, x.dtype)
    return _apply(x, rows, columns)


def resize_bilinear_of_split_rows(
    x: Float[Array, "batch height width channels"], size: Sequence[Any], *, align_corners: bool = False
) -> Float[Array, "batch out_height out_width channels"]:
    """Computes `resize_bilinear` for images whose rows are split over devices.

    If the height grows by a whole factor, a convolution interpolates the rows, and each device needs one row from each
    neighbor. Otherwise every device gathers all rows.
    """
    height, width = size
    if x.shape[1:3] == (height, width):
        return x
    if align_corners or height % x.shape[1]:
        return resize_bilinear(x, size, align_corners=align_corners)
    return resize_bilinear(_enlarge_rows(x, height // x.shape[1]), size)


def resize_to_sizes(
    x: Float[Array, "batch height width channels"],
    extents: Shaped[Array, "batch 2"],
    sizes: Shaped[Array, "batch 2"],
    canvas: Sequence[int],
) -> Float[Array, "batch canvas_height canvas_width channels"]:
    """Resizes the top left part of each element to its own size on a common canvas, at half-pixel centers.

    Extents and sizes are data, not shapes: one compiled program handles images of any size up to the canvas.

    Args:
      x: the images or features.
      extents: height and width of the part of each element that holds its image; the rest is padding.
      sizes: height and width of this part on the canvas, at the top left. The other pixels of the canvas repeat the
        border.
      canvas: height and width of the result.
    """
    rows = half_pixel_weights(x.shape[1], extents[:, 0], sizes[:, 0], canvas[0], x.dtype)
    columns = half_pixel_weights(x.shape[2], extents[:, 1], sizes[:, 1], canvas[1], x.dtype)
    return jax.vmap(lambda image, row, column: _apply(image[None], row, column)[0])(x, rows, columns)


def _apply(x, rows, columns):
    """Interpolates rows, then columns, with dense weights of shapes (out_height, height) and (out_width, width)."""
    precision = lax.Precision.HIGHEST  # bfloat16 passes on TPU would move the weights by 1e-2
    x = jnp.einsum("bhwc,Hh->bHwc", x, rows, precision=precision)
    return jnp.einsum("bHwc,Ww->bHWc", x, columns, precision=precision)


def _triangle(positions, last, size, dtype):
    """Returns bilinear weights of `size` source pixels for sample positions, clamped to [0, last]."""
    positions = jnp.clip(positions, 0, last)[..., None]
    grid = jnp.arange(size, dtype=positions.dtype).reshape((1,) * (positions.ndim - 1) + (size,))
    return jnp.maximum(0, 1 - jnp.abs(positions - grid)).astype(dtype)


def half_pixel_weights(size, extents, out_sizes, canvas, dtype):
    """Returns weights (batch, canvas, size) that resize the first `extents` of `size` pixels to `out_sizes` pixels."""
    extents, out_sizes = extents.astype(dtype)[:, None], out_sizes.astype(dtype)[:, None]
    out = jnp.minimum(jnp.arange(canvas, dtype=dtype)[None], out_sizes - 1)
    return _triangle((out + 0.5) * (extents / out_sizes) - 0.5, extents - 1, size, dtype)


def axis_weights(size, out_size, dtype, *, align_corners):
    """Returns the weights (out_size, size) of one axis of `resize_bilinear`."""
    if align_corners:
        return _align_corners_weights(size, out_size, dtype)
    return half_pixel_weights(size, jnp.array([size]), jnp.array([out_size]), out_size, dtype)[0]


def _align_corners_weights(size, out_size, dtype):
    scale = (size - 1) / (out_size - 1) if out_size > 1 else 0.0
    return _triangle(jnp.arange(out_size, dtype=dtype) * scale, size - 1, size, dtype)


def _enlarge_rows(x, factor):
    """Interpolates rows at half-pixel centers by a depthwise convolution with a triangle.

    The convolution reads `factor - 1` zeros between the rows. Output row o is at (o + 0.5) / factor - 0.5, so its tap
    for input row i depends on o - factor * i only. Beyond the ends the border should repeat, but the convolution finds
    zeros there: the weight of the one neighbor that exists is scaled up to one.
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
