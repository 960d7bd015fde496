"""Losses of how regions overlap: Dice, Jaccard and Tversky.

Each is computed per image: one minus the mean score of the classes that the labels of the image contain. Sums over
images are exact over devices and micro-batches, where a ratio of a part of the batch is not the ratio of the whole.
"""

from typing import NamedTuple

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
    """Sums over images one minus the Dice score: 2 * intersection / (predicted + true), of probabilities.

    Args:
      logits: any float type; probabilities and sums are computed in float32 or wider.
      labels: class ids, or `IGNORE_LABEL` for pixels that contribute nothing.
      smooth: added to the numerator and the denominator.
      where: pixels that exist; others contribute nothing.

    Returns:
      The sum, and the number of images with labeled pixels.
    """
    regions = _measure(logits, labels, where)
    scores = (2 * regions.intersection + smooth) / (_nonzero(regions.predicted + regions.true) + smooth)
    return _loss(scores, regions), count_images(labels, where=where)


def jaccard(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    smooth: float = 0.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """Sums over images one minus the Jaccard score: intersection / union, of probabilities. See `dice`."""
    regions = _measure(logits, labels, where)
    union = regions.predicted + regions.true - regions.intersection
    return _loss((regions.intersection + smooth) / (_nonzero(union) + smooth), regions), count_images(
        labels, where=where
    )


def tversky(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 0.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """Sums over images one minus the Tversky index (arXiv 1706.05721, equation 1). See `dice`.

    The index is tp / (tp + alpha * fp + beta * fn), of probabilities. It is the Dice score if both are 0.5, and the
    Jaccard score for 1.
    """
    regions = _measure(logits, labels, where)
    false_positive = regions.predicted - regions.intersection
    false_negative = regions.true - regions.intersection
    size = regions.intersection + alpha * false_positive + beta * false_negative
    return _loss((regions.intersection + smooth) / (_nonzero(size) + smooth), regions), count_images(
        labels, where=where
    )


class _Regions(NamedTuple):
    """Sizes of the regions of each class in each image: what is common, predicted and true."""

    intersection: Float[Array, "batch classes"]
    predicted: Float[Array, "batch classes"]
    true: Float[Array, "batch classes"]


def _measure(logits, labels, where) -> _Regions:
    probabilities = jax.nn.softmax(logits.astype(accumulator(logits.dtype)), axis=-1)
    counted = is_labeled(labels, where)[..., None]
    is_class = compare_with_classes(labels, logits.shape[-1]) & counted
    return _Regions(
        intersection=jnp.sum(jnp.where(is_class, probabilities, 0), axis=(1, 2)),
        predicted=jnp.sum(jnp.where(counted, probabilities, 0), axis=(1, 2)),
        true=jnp.sum(is_class, axis=(1, 2), dtype=jnp.int32).astype(probabilities.dtype),
    )


def _nonzero(sizes):
    """Replaces sizes of 0: of classes that are neither predicted nor true, which no mean contains."""
    return jnp.where(sizes > 0, sizes, 1)


def _loss(scores: Float[Array, "batch classes"], regions: _Regions) -> Float[Array, ""]:
    present = regions.true > 0
    losses = jnp.sum(jnp.where(present, 1 - scores, 0), axis=1)
    return jnp.sum(losses / jnp.maximum(jnp.sum(present, axis=1, dtype=jnp.int32), 1).astype(losses.dtype))
