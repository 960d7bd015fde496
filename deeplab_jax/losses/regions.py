"""Losses of how regions overlap: Dice, Jaccard and Tversky.

Each is computed per image: one minus the mean score of the classes that the labels of the image contain. Sums over
images are exact over devices and micro-batches, where a ratio of a part of the batch is not the ratio of the whole.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Integer

from deeplab_jax.losses.counts import compare_with_classes, count_images, is_labeled
from deeplab_jax.ops.precision import accumulator


def dice(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    smooth: float = 0.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """Sums over images one minus the Dice score: 2 * intersection / (predicted + true). See `tversky`."""
    return tversky(logits, labels, alpha=0.5, beta=0.5, smooth=smooth, where=where)


def jaccard(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    smooth: float = 0.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """Sums over images one minus the Jaccard score: intersection / union. See `tversky`."""
    return tversky(logits, labels, alpha=1.0, beta=1.0, smooth=smooth, where=where)


def tversky(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 0.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """Sums over images one minus the Tversky index (arXiv 1706.05721, equation 1): tp / (tp + alpha * fp + beta * fn).

    The index of an image is the mean over the classes that its labels contain. Softmax probabilities stand for
    predicted pixels. The index is the Dice score for alpha and beta of 0.5, and the Jaccard score for 1.

    Args:
      logits: any float type; probabilities and sums are computed in float32 or wider.
      labels: class ids, or `IGNORE_LABEL` for pixels that contribute nothing.
      alpha: weight of false positives.
      beta: weight of false negatives.
      smooth: added to the numerator and the denominator.
      where: pixels that exist; others contribute nothing.

    Returns:
      The sum, and the number of images with labeled pixels.
    """
    probabilities = jax.nn.softmax(logits.astype(accumulator(logits.dtype)), axis=-1)
    counted = is_labeled(labels, where)[..., None]
    is_class = compare_with_classes(labels, logits.shape[-1]) & counted
    # Two sums of probabilities: the gradient of a third one would store another array of their size.
    true_positive = jnp.sum(jnp.where(is_class, probabilities, 0), axis=(1, 2))
    predicted = jnp.sum(jnp.where(counted, probabilities, 0), axis=(1, 2))
    true = jnp.sum(is_class, axis=(1, 2), dtype=jnp.int32).astype(probabilities.dtype)
    present = true > 0
    size = true_positive + alpha * (predicted - true_positive) + beta * (true - true_positive) + smooth
    # A class that is present has a size above 0, unless alpha or beta is 0.
    index = (true_positive + smooth) / jnp.where(present & (size > 0), size, 1)
    losses = jnp.sum(jnp.where(present, 1 - index, 0), axis=1)
    means = losses / jnp.maximum(jnp.sum(present, axis=1, dtype=jnp.int32), 1).astype(losses.dtype)
    return jnp.sum(means), count_images(labels, where=where)
