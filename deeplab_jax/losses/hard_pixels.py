"""Cross-entropy of hard pixels: the largest losses of each image (research/deeplab), or doubtful pixels (OHEM)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Integer

from deeplab_jax.losses.counts import compare_with_classes, count_images, is_labeled, pixel_weights
from deeplab_jax.losses.cross_entropy import pixel_cross_entropy
from deeplab_jax.ops.precision import accumulator


def top_k_cross_entropy(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    fraction: float = 0.25,
    gradual_steps: int = 0,
    step: Integer[Array, ""] | int | None = None,
    class_weights: tuple[float, ...] = (),
    label_smoothing: float = 0.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Array]:
    """Sums the largest pixel losses of each image, as the hard example mining of research/deeplab does.

    research/deeplab takes the largest losses of the images on one device, so its loss depends on the number of devices.
    Here each image has its own; the two are equal for one image per device.

    Args:
      logits: see `softmax_cross_entropy`.
      labels: see `softmax_cross_entropy`.
      fraction: share of each image's pixels, labeled or not, whose losses count (`top_k_percent_pixels`).
      gradual_steps: number of steps in which the share falls linearly from 1 (`hard_example_mining_step`).
      step: number of steps taken before this one; None is after the last.
      class_weights: one factor per class that weights the sum alone, as in research/deeplab; () for ones.
      label_smoothing: see `softmax_cross_entropy`.
      where: pixels that exist; others contribute nothing.

    Returns:
      The sum, and the number of pixels in it: labeled pixels of a class whose weight is above 0, at most k per image.
    """
    logits = logits.astype(accumulator(logits.dtype))
    losses = pixel_cross_entropy(logits, labels, label_smoothing)
    if class_weights:
        losses = losses * pixel_weights(labels, logits, class_weights)
    losses = jnp.where(_can_count(labels, class_weights, where), losses, 0)
    options = {"fraction": fraction, "gradual_steps": gradual_steps, "step": step, "where": where}
    kept = _largest(losses, _pixels_to_keep(labels, **options))
    return jnp.sum(losses * kept), count_top_k(labels, class_weights=class_weights, **options)


def count_top_k(
    labels: Integer[Array, "batch height width"],
    *,
    fraction: float,
    gradual_steps: int = 0,
    step: Integer[Array, ""] | int | None = None,
    class_weights: tuple[float, ...] = (),
    where: Bool[Array, "batch height width"] | None = None,
) -> Int32[Array, ""]:
    """Counts the pixels that `top_k_cross_entropy` sums."""
    available = jnp.sum(_can_count(labels, class_weights, where), axis=(1, 2), dtype=jnp.int32)
    k = _pixels_to_keep(labels, fraction=fraction, gradual_steps=gradual_steps, step=step, where=where)
    return jnp.sum(jnp.minimum(k, available), dtype=jnp.int32)


def ohem_cross_entropy(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    threshold: float = 0.7,
    min_fraction: float = 0.0625,
    class_weights: tuple[float, ...] = (),
    label_smoothing: float = 0.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """Online hard example mining: sums over images the mean cross-entropy of each image's doubtful pixels.

    A pixel is doubtful if the probability of its true class is below the threshold. An image with few of them takes its
    least probable pixels instead. BiSeNet's and HRNet's losses do this over the images on one device; here the mean is
    that of one image, so the number of devices does not change it.

    Args:
      logits: see `softmax_cross_entropy`.
      labels: see `softmax_cross_entropy`.
      threshold: largest probability of a doubtful pixel.
      min_fraction: smallest share of an image's labeled pixels that counts.
      class_weights: one factor per class that weights the mean of each image; () for ones.
      label_smoothing: see `softmax_cross_entropy`.
      where: pixels that exist; others contribute nothing.

    Returns:
      The sum, and the number of images with labeled pixels.
    """
    logits = logits.astype(accumulator(logits.dtype))
    counted = is_labeled(labels, where)
    losses = pixel_cross_entropy(logits, labels)
    doubt = jax.lax.stop_gradient(jnp.where(counted, losses, 0))
    hard = counted & (doubt > -math.log(threshold))
    k = jnp.sum(counted, axis=(1, 2)).astype(doubt.dtype) * min_fraction
    k = jnp.floor(k).astype(jnp.int32)
    enough = jnp.sum(hard, axis=(1, 2), dtype=jnp.int32) >= k
    kept = jnp.where(enough.reshape(-1, 1, 1), hard.astype(doubt.dtype), _largest(doubt, k))
    if class_weights:
        kept = kept * pixel_weights(labels, logits, class_weights)
    if label_smoothing:
        losses = pixel_cross_entropy(logits, labels, label_smoothing)
    sums = jnp.sum(jnp.where(counted, losses, 0) * kept, axis=(1, 2))
    sizes = jnp.sum(kept, axis=(1, 2))
    means = jnp.where(sizes > 0, sums / jnp.where(sizes > 0, sizes, 1), sums)
    return jnp.sum(means), count_images(labels, where=where)


def _can_count(labels, class_weights, where):
    """True for labeled pixels of a class whose weight is above 0."""
    counted = is_labeled(labels, where)
    if all(weight > 0 for weight in class_weights):
        return counted
    positive = jnp.asarray([weight > 0 for weight in class_weights]).reshape(1, 1, 1, -1)
    return counted & jnp.any(compare_with_classes(labels, len(class_weights)) & positive, axis=-1)


def _pixels_to_keep(labels, *, fraction, gradual_steps, step, where) -> Int32[Array, "batch"]:
    """The number of pixels that count in each image: the share of existing ones, rounded down, but at least one."""
    share = jnp.asarray(fraction, jnp.float32)
    if gradual_steps and step is not None:
        ratio = jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / gradual_steps)
        share = ratio * share + (1 - ratio)
    if where is None:
        pixels = jnp.full(labels.shape[:1], math.prod(labels.shape[1:]), jnp.int32)
    else:
        pixels = jnp.sum(where, axis=(1, 2), dtype=jnp.int32)
    return jnp.maximum(jnp.floor(share * pixels.astype(jnp.float32)).astype(jnp.int32), 1)


def _largest(values: Float[Array, "batch height width"], k: Int32[Array, "batch"]) -> Float[Array, "..."]:
    """Marks the k largest values of each image with 1, others with 0. Equal values at the border share what is left.

    Values are losses, at least 0 but for rounding. No gradient passes.
    """
    values = jax.lax.stop_gradient(jnp.maximum(values, 0))
    smallest = _kth_largest(values, k).reshape(-1, 1, 1)
    above, equal = values > smallest, values == smallest
    left = k - jnp.sum(above, axis=(1, 2), dtype=jnp.int32)
    ties = jnp.maximum(jnp.sum(equal, axis=(1, 2), dtype=jnp.int32), 1)
    share = (left.astype(values.dtype) / ties.astype(values.dtype)).reshape(-1, 1, 1)
    return jnp.where(above, 1, jnp.where(equal, share, 0)).astype(values.dtype)


def _kth_largest(values: Float[Array, "batch height width"], k: Int32[Array, "batch"]) -> Float[Array, "batch"]:
    """The k-th largest value of each image, found bit by bit.

    The bits of floats that are not negative have the order of integers. Only counts leave a device, where sorting would
    gather images whose rows are split.
    """
    integer = {4: jnp.int32, 8: jnp.int64}[values.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(values, integer)
    highest = 8 * values.dtype.itemsize - 2  # below the sign

    def add_bit(i, found):
        candidate = found | (jnp.asarray(1, integer) << (highest - i).astype(integer))
        enough = jnp.sum(bits >= candidate.reshape(-1, 1, 1), axis=(1, 2), dtype=jnp.int32) >= k
        return jnp.where(enough, candidate, found)

    found = jax.lax.fori_loop(0, highest + 1, add_bit, jnp.zeros(values.shape[:1], integer))
    return jax.lax.bitcast_convert_type(found, values.dtype)
