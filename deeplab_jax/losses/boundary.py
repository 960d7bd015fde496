"""Cross-entropy near the boundaries between classes."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from deeplab_jax.losses.counts import count_pixels, is_labeled
from deeplab_jax.losses.cross_entropy import softmax_cross_entropy


def boundary_cross_entropy(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    width: int = 3,
    class_weights: tuple[float, ...] = (),
    label_smoothing: float = 0.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Array]:
    """Sums the cross-entropy of pixels near a boundary, and counts them.

    Added to `softmax_cross_entropy` it gives these pixels a larger weight, whatever their share of the image is.

    Args:
      logits: see `softmax_cross_entropy`.
      labels: see `softmax_cross_entropy`.
      width: see `near_boundary`.
      class_weights: see `softmax_cross_entropy`.
      label_smoothing: see `softmax_cross_entropy`.
      where: pixels that exist; others contribute nothing and have no class.
    """
    near = near_boundary(labels, width, where=where)
    return softmax_cross_entropy(
        logits, labels, class_weights=class_weights, label_smoothing=label_smoothing, where=near
    )


def count_near_boundary(
    labels: Integer[Array, "batch height width"],
    *,
    width: int,
    class_weights: tuple[float, ...] = (),
    where: Bool[Array, "batch height width"] | None = None,
) -> Array:
    """Counts the pixels that `boundary_cross_entropy` sums."""
    return count_pixels(labels, class_weights=class_weights, where=near_boundary(labels, width, where=where))


def near_boundary(
    labels: Integer[Array, "batch height width"],
    width: int,
    *,
    where: Bool[Array, "batch height width"] | None = None,
) -> Bool[Array, "batch height width"]:
    """True for labeled pixels that have another class within `width` rows and columns of the same image.

    A boundary between a class and ignored pixels does not count: such pixels often outline objects.

    Args:
      labels: class ids, or `IGNORE_LABEL`.
      width: half the side of the square around a pixel, without the pixel.
      where: pixels that exist.
    """
    labeled = is_labeled(labels, where)
    labels = labels.astype(jnp.int32)
    largest, smallest = jnp.iinfo(jnp.int32).max, jnp.iinfo(jnp.int32).min
    low = _in_square(jnp.where(labeled, labels, largest), width, largest, jax.lax.min)
    high = _in_square(jnp.where(labeled, labels, smallest), width, smallest, jax.lax.max)
    return labeled & (low != high)


def _in_square(values, width, neutral, reduce):
    """Reduces the square around each pixel, first its columns and then its rows."""
    neutral = np.int32(neutral)  # as the values: integers of Python may have 64 bits
    for window in ((1, 2 * width + 1, 1), (1, 1, 2 * width + 1)):
        values = jax.lax.reduce_window(values, neutral, reduce, window, (1, 1, 1), "SAME")
    return values
