"""Bilinear resizing of NHWC images and of logits to each picture's own size."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8


def resize_bilinear(
    x: Float[Array, "batch height width channels"], size: Sequence[int], *, align_corners: bool = False
) -> Float[Array, "batch out_height out_width channels"]:
    """Resizes to `size` (height, width) by bilinear interpolation, without antialiasing.

    Args:
      x: what to resize.
      size: height and width of the result.
      align_corners: False samples at half-pixel centres (TensorFlow 2, PyTorch's default); True maps the corner
        pixels onto each other (research/deeplab), which suits sizes of k * stride + 1.
    """
    height, width = size
    if x.shape[1:3] == (height, width):
        return x
    if not align_corners:
        shape = (x.shape[0], height, width, x.shape[-1])
        return jax.image.resize(x, shape, "bilinear", antialias=False)
    rows = _align_corners_weights(x.shape[1], height, x.dtype)
    columns = _align_corners_weights(x.shape[2], width, x.dtype)
    return _apply(x, rows, columns)


def resize_to_sizes(
    x: Float[Array, "batch height width channels"],
    extents: Int[Array, "batch 2"],
    sizes: Int[Array, "batch 2"],
    canvas: Sequence[int],
) -> Float[Array, "batch canvas_height canvas_width channels"]:
    """Resizes the top left part of each element to a size of its own (half-pixel bilinear), on a common canvas.

    Extents and sizes are data, not shapes: one compiled program serves pictures of any size up to the canvas.

    Args:
      x: what to resize.
      extents: height and width of the part of each element that holds its picture; the rest is padding.
      sizes: height and width that this part gets, at the top left of the canvas. The canvas' other pixels repeat
        its border.
      canvas: height and width of the result.
    """
    rows = _half_pixel_weights(x.shape[1], extents[:, 0], sizes[:, 0], canvas[0], x.dtype)
    columns = _half_pixel_weights(x.shape[2], extents[:, 1], sizes[:, 1], canvas[1], x.dtype)
    return jax.vmap(lambda image, row, column: _apply(image[None], row, column)[0])(x, rows, columns)


def predict_resized(
    logits: Float[Array, "batch height width classes"],
    extents: Int[Array, "batch 2"],
    sizes: Int[Array, "batch 2"],
    canvas: Sequence[int],
    *,
    block: int = 64,
) -> UInt8[Array, "batch canvas_height canvas_width"]:
    """The arg max over classes of `resize_to_sizes`, computed `block` rows at a time.

    Full-size logits of a large photo would take gigabytes; this never holds more than a strip of them.
    """
    rows = _half_pixel_weights(logits.shape[1], extents[:, 0], sizes[:, 0], canvas[0], logits.dtype)
    columns = _half_pixel_weights(logits.shape[2], extents[:, 1], sizes[:, 1], canvas[1], logits.dtype)
    strips = -(-canvas[0] // block)
    rows = jnp.pad(rows, ((0, 0), (0, strips * block - canvas[0]), (0, 0)))

    def predict_strip(strip):
        some = lax.dynamic_slice_in_dim(rows, strip * block, block, axis=1)
        resized = jax.vmap(lambda image, row, column: _apply(image[None], row, column)[0])(logits, some, columns)
        return jnp.argmax(resized, axis=-1).astype(jnp.uint8)

    labels = lax.map(predict_strip, jnp.arange(strips))  # strips batch block width
    labels = jnp.moveaxis(labels, 0, 1).reshape(len(logits), strips * block, canvas[1])
    return labels[:, : canvas[0]]


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


def _half_pixel_weights(size, extents, out_sizes, canvas, dtype):
    extents, out_sizes = extents.astype(dtype)[:, None], out_sizes.astype(dtype)[:, None]
    out = jnp.minimum(jnp.arange(canvas, dtype=dtype)[None], out_sizes - 1)
    return _triangle((out + 0.5) * (extents / out_sizes) - 0.5, extents - 1, size, dtype)


def _align_corners_weights(size, out_size, dtype):
    scale = (size - 1) / (out_size - 1) if out_size > 1 else 0.0
    return _triangle(jnp.arange(out_size, dtype=dtype) * scale, size - 1, size, dtype)
