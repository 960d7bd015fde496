"""Resizing of logits to the size of an image, a strip of rows at a time: full-size logits of a photo take gigabytes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped, UInt8

from deeplab_jax.ops.resize import axis_weights, half_pixel_weights

_BLOCK = 32  # rows of a strip

# An output row depends on at most three consecutive rows of the classifier: it lies between two rows of the network
# input, which are at most as far apart as the rows of the classifier and lie between two of them each.
_TAPS = 3


def map_resized(
    views: Sequence[Float[Array, "batch _ _ classes"]],
    extents: Sequence[Shaped[Array, "batch 2"]],
    sizes: Int[Array, "batch 2"],
    canvas: Sequence[int],
    finish: Callable[[list[Float[Array, "block classes width"]]], Any],
    *,
    inputs: Sequence[Sequence[int]] | None = None,
    align_corners: bool = False,
    block: int = _BLOCK,
) -> Any:
    """Resizes logits to the sizes of images and reduces them, with only one strip of them in memory.

    The weights of both resizing steps, from the classifier to the network input and from there to the image, are
    multiplied first. Columns are resized before rows, while there are few rows. The product of a strip uses only the
    rows it needs.

    Args:
      views: logits of the same images at the classifier's resolution, one array per view.
      extents: for each view, height and width of the top left part of the network input that shows the image.
      sizes: height and width of the images, at the top left of the canvas.
      canvas: height and width of the result, which is undefined outside an image.
      finish: reduces the views' logits of a strip; returns arrays whose first axis has length `block`.
      inputs: for each view, height and width of the network input, to which its logits are resized first, as
        `resize_bilinear` does (default: the size of the logits).
      align_corners: whether resizing to the network input aligns corners; resizing to the image uses half-pixel
        centers.
      block: rows per strip.

    Returns:
      The results of `finish`, with axes (batch, canvas height) in place of `block`.
    """
    block = min(block, canvas[0])
    strips = -(-canvas[0] // block)
    inputs = [logits.shape[1:3] for logits in views] if inputs is None else inputs
    prepared = [
        _prepare(logits, extent, sizes, canvas, given, align_corners, strips * block)
        for logits, extent, given in zip(views, extents, inputs, strict=True)
    ]

    def finish_strip(index):
        image, strip = index // strips, index % strips
        return finish([_strip(planes[image], rows[image], strip * block, block) for planes, rows in prepared])

    results = lax.map(finish_strip, jnp.arange(len(sizes) * strips))

    def join(result):
        result = result.reshape(len(sizes), strips * block, *result.shape[2:])
        return result[:, : canvas[0]]

    return jax.tree.map(join, results)


def resize_labels(
    labels: UInt8[Array, "batch _ _"],
    extents: Shaped[Array, "batch 2"],
    sizes: Int[Array, "batch 2"],
    canvas: Sequence[int],
    *,
    inputs: Sequence[Sequence[int]],
    align_corners: bool = False,
) -> UInt8[Array, "batch canvas_height canvas_width"]:
    """Resizes labels to the sizes of images: every pixel gets the label with the largest weight in `map_resized`.

    Args:
      labels: labels at the classifier's resolution.
      extents: height and width of the top left part of the network input that shows the image.
      sizes: see `map_resized`.
      canvas: see `map_resized`.
      inputs: height and width of the network input, in a list of one.
      align_corners: see `map_resized`.
    """
    (given,) = inputs
    weights = _weights(labels.shape[1:], extents, sizes, canvas, given, align_corners, jnp.float32)
    rows, columns = (jnp.argmax(each, axis=-1) for each in weights)
    return jax.vmap(lambda image, row, column: image[row][:, column])(labels, rows, columns)


def _weights(shape, extents, sizes, canvas, given, align_corners, dtype):
    """Returns the weights (batch, canvas height, rows) and (batch, canvas width, columns) of both resizing steps."""
    matrices = []
    for axis in (0, 1):
        weights = half_pixel_weights(given[axis], extents[:, axis], sizes[:, axis], canvas[axis], dtype)
        if shape[axis] != given[axis]:
            first = axis_weights(shape[axis], given[axis], dtype, align_corners=align_corners)
            weights = jnp.einsum("boi,ic->boc", weights, first, precision=lax.Precision.HIGHEST)
        matrices.append(weights)
    return matrices


def _prepare(logits, extents, sizes, canvas, given, align_corners, padded_height):
    """Returns planes (batch, rows, classes, canvas width) with interpolated columns, and the weights of the rows."""
    rows, columns = _weights(logits.shape[1:3], extents, sizes, canvas, given, align_corners, logits.dtype)
    rows = jnp.pad(rows, ((0, 0), (0, padded_height - canvas[0]), (0, 0)))
    planes = jnp.einsum("bhcw,bWw->bhcW", logits.swapaxes(2, 3), columns, precision=lax.Precision.HIGHEST)
    return planes, rows


def _strip(planes, rows, start, block):
    """Returns rows `start` to `start + block` of one image, computed from as few source rows as possible."""
    height = len(planes)
    some = lax.dynamic_slice_in_dim(rows, start, block)
    flat = planes.reshape(height, -1)

    def product(weights, values):
        return jnp.dot(weights, values, precision=lax.Precision.HIGHEST).reshape(block, *planes.shape[1:])

    band = math.ceil(block / 2) + _TAPS  # enough if every source row contributes to at least two image rows
    if band >= height:
        return product(some, flat)
    used = jnp.any(some != 0, axis=0)
    first = jnp.argmax(used)
    last = height - 1 - jnp.argmax(used[::-1])
    begin = jnp.minimum(first, height - band)

    def from_band():
        return product(
            lax.dynamic_slice_in_dim(some, begin, band, axis=1), lax.dynamic_slice_in_dim(flat, begin, band, axis=0)
        )

    return lax.cond(last < begin + band, from_band, lambda: product(some, flat))
