"""Image-level pooling: the mean of the features, or means over windows of a fixed size."""

from collections.abc import Sequence
from typing import Any

import jax.core
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.precision import accumulator


def pool_image(
    x: Float[Array, "batch height width features"],
    *,
    window: Sequence[int] = (),
    stride: Sequence[int] = (1, 1),
    output_stride: int = 1,
) -> Float[Array, "batch rows columns features"]:
    """Averages the features over windows that lie within the image.

    A network trained on crops sees means over whole crops. At test time, windows of that size keep their means
    comparable on a larger image (`image_pooling_crop_size` in `model.py` of research/deeplab).

    A window larger than the features is cut to their size, so that a small image has a single mean. research/deeplab
    has no such case: its graph cannot be built.

    Args:
      x: the features.
      window: (height, width) of the windows in pixels of the image; empty for a single window over all features.
      stride: the strides of the windows along both axes, in pixels of the features.
      output_stride: pixels of the image per pixel of the features.

    Returns:
      One mean per window, in the dtype of `x`. Rows and columns at the lower and right border that no window reaches
      are not counted.
    """
    accumulated = accumulator(x.dtype)
    if not window:
        return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=accumulated).astype(x.dtype)
    rows, columns = (
        _window_weights(size, -(-extent // output_stride), step, accumulated)
        for size, extent, step in zip(x.shape[1:3], window, stride, strict=True)
    )
    # Matrix products, since exporters and sizes that are symbols of `jax.export` have no windows.
    precision = lax.Precision.HIGHEST  # bfloat16 passes on TPU would round the means
    means = jnp.einsum("bhwc,oh->bowc", x.astype(accumulated), rows, precision=precision)
    return jnp.einsum("bowc,pw->bopc", means, columns, precision=precision).astype(x.dtype)


def _window_weights(size: Any, extent: int, stride: int, dtype) -> Float[Array, "windows size"]:
    """Returns the weights of the pixels of one axis in each window: 1 / extent inside, 0 outside."""
    extent = jax.core.min_dim(extent, size)
    first = stride * jnp.arange((size - extent) // stride + 1)[:, None]
    pixels = jnp.arange(size)[None]
    return ((pixels >= first) & (pixels < first + extent)).astype(dtype) / extent
