"""Pixel-wise cross-entropy. Losses return a sum and a count, so means are exact over devices and micro-batches."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from deeplab_jax.losses.counts import compare_with_classes, is_labeled, one_hot, pixel_weights, weighted_mean_parts
from deeplab_jax.ops.precision import accumulator

_KERAS_EPSILON = 1e-7


def softmax_cross_entropy(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    class_weights: tuple[float, ...] = (),
    label_smoothing: float = 0.0,
    teacher_logits: Float[Array, "batch height width classes"] | None = None,
    teacher_weight: float = 0.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Array]:
    """Sums the cross-entropy over labeled pixels, and counts them.

    Args:
      logits: any float type; the loss is computed in float32 or wider.
      labels: class ids, or `IGNORE_LABEL` for pixels that contribute to neither result.
      class_weights: one factor per class that weights both the sum and the count, as in PyTorch; () for ones.
      label_smoothing: s changes the target from 1 to 1 - s + s / classes, and from 0 to s / classes.
      teacher_logits: logits of another network for the same images, whose probabilities are mixed into the target
        (arXiv 1503.02531, section 2, at temperature 1).
      teacher_weight: w makes the target (1 - w) * labels + w * probabilities.
      where: pixels that exist; others contribute nothing.

    Returns:
      The sum, and the count: int32, or with class weights a float of the loss's type.
    """
    logits = logits.astype(accumulator(logits.dtype))
    counted = is_labeled(labels, where)
    pixel_losses = pixel_cross_entropy(logits, labels, label_smoothing, teacher_logits, teacher_weight)
    return weighted_mean_parts(pixel_losses, labels, logits, counted=counted, class_weights=class_weights)


def pixel_cross_entropy(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    label_smoothing: float = 0.0,
    teacher_logits: Float[Array, "batch height width classes"] | None = None,
    teacher_weight: float = 0.0,
) -> Float[Array, "batch height width"]:
    """Computes the cross-entropy of each pixel in the dtype of the logits. Values of ignored pixels are meaningless.

    For arguments see `softmax_cross_entropy`.
    """
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    target = _smooth(one_hot(labels, logits), label_smoothing)
    if teacher_logits is not None:
        probabilities = jax.nn.softmax(teacher_logits.astype(logits.dtype), axis=-1)
        target = (1 - teacher_weight) * target + teacher_weight * probabilities
    # sum(target) is 1 for labeled pixels: this is -sum(target * log_softmax) without storing log_softmax.
    return log_normalizer - jnp.sum(target * logits, axis=-1)


def softmax_focal(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    gamma: float = 2.0,
    class_weights: tuple[float, ...] = (),
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Array]:
    """Sums the focal loss of the softmax over labeled pixels, and counts them.

    With p the softmax's probability of the true class, a pixel has the loss -(1 - p)^gamma * log(p). `focal` asks about
    each class with a sigmoid instead.

    Args:
      logits: see `softmax_cross_entropy`.
      labels: see `softmax_cross_entropy`.
      gamma: exponent of 1 - p; 0 gives the cross-entropy.
      class_weights: see `softmax_cross_entropy`.
      where: pixels that exist; others contribute nothing.
    """
    logits = logits.astype(accumulator(logits.dtype))
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    others = jnp.where(compare_with_classes(labels, logits.shape[-1]), -jnp.inf, logits)
    # (1 - p)^gamma as an exponential: the derivative of a power is infinite at 0 for exponents below 1.
    modulation = jnp.exp(gamma * (jax.nn.logsumexp(others, axis=-1) - log_normalizer))
    pixel_losses = modulation * pixel_cross_entropy(logits, labels)
    counted = is_labeled(labels, where)
    return weighted_mean_parts(pixel_losses, labels, logits, counted=counted, class_weights=class_weights)


def keras_categorical_cross_entropy(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    class_weights: tuple[float, ...] = (),
    label_smoothing: float = 0.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Array]:
    """Computes Keras' `CategoricalCrossentropy(from_logits=False)` of the softmax, for one-hot labels.

    Rows of ignored pixels are zero. Probabilities are clipped to [1e-7, 1 - 1e-7]. An ignored pixel adds nothing to the
    sum but is counted, so the mean is over every pixel, as in the KerasCV guide. For arguments see
    `softmax_cross_entropy`.
    """
    logits = logits.astype(accumulator(logits.dtype))
    pixel_losses = _keras_pixel_losses(logits, labels, label_smoothing)
    exists = jnp.ones(labels.shape, bool) if where is None else where
    if class_weights:
        pixel_losses = pixel_losses * pixel_weights(labels, logits, class_weights)
    return jnp.sum(jnp.where(exists, pixel_losses, 0)), jnp.sum(exists, dtype=jnp.int32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _keras_pixel_losses(logits, labels, label_smoothing):
    """Computes the cross-entropy of each pixel's clipped probabilities, with a derivative in closed form.

    Automatic differentiation from softmax to logarithm keeps ten arrays of the logits' size: 1 GB for four images of
    512x512.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    probabilities = probabilities / jnp.sum(probabilities, axis=-1, keepdims=True)
    log_probabilities = jnp.log(jnp.clip(probabilities, _KERAS_EPSILON, 1 - _KERAS_EPSILON))
    return -jnp.sum(_keras_target(labels, logits, label_smoothing) * log_probabilities, axis=-1)


@_keras_pixel_losses.defjvp
def _keras_pixel_losses_jvp(label_smoothing, primals, tangents):
    logits, labels = primals
    probabilities = jax.nn.softmax(logits, axis=-1)
    inside = (probabilities >= _KERAS_EPSILON) & (probabilities <= 1 - _KERAS_EPSILON)  # clipped: no gradient
    target = jnp.where(inside, _keras_target(labels, logits, label_smoothing), 0)
    gradient = probabilities * jnp.sum(target, axis=-1, keepdims=True) - target
    return _keras_pixel_losses(logits, labels, label_smoothing), jnp.sum(gradient * tangents[0], axis=-1)


def _keras_target(labels, logits, label_smoothing):
    """One-hot rows with smoothing; rows of ignored pixels are zero before smoothing."""
    return _smooth(one_hot(labels, logits), label_smoothing)


def _smooth(one_hot, label_smoothing):
    if not label_smoothing:
        return one_hot
    return one_hot * (1 - label_smoothing) + label_smoothing / one_hot.shape[-1]
