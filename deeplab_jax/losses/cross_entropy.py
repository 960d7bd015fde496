"""Pixel-wise cross-entropy. Losses return a sum and a count, so means are exact over devices and micro-batches."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer
from ml_collections import ConfigDict

from deeplab_jax.config import check_fields
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.ops.precision import accumulator

# (logits, labels, where=None, teacher_logits=None) to the sum over pixels and the count to divide it by.
Loss = Callable[..., tuple[Float[Array, ""], Array]]

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
    counted = labels != IGNORE_LABEL if where is None else (labels != IGNORE_LABEL) & where
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    target = _smooth(_one_hot(labels, logits), label_smoothing)
    if teacher_logits is not None:
        probabilities = jax.nn.softmax(teacher_logits.astype(logits.dtype), axis=-1)
        target = (1 - teacher_weight) * target + teacher_weight * probabilities
    # sum(target) is 1 for labeled pixels: this is -sum(target * log_softmax) without storing log_softmax.
    pixel_losses = log_normalizer - jnp.sum(target * logits, axis=-1)
    if not class_weights:
        return jnp.sum(jnp.where(counted, pixel_losses, 0)), jnp.sum(counted, dtype=jnp.int32)
    weights = jnp.where(counted, _pixel_weights(labels, logits, class_weights), 0)
    return jnp.sum(jnp.where(counted, pixel_losses, 0) * weights), jnp.sum(weights)


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
        pixel_losses = pixel_losses * _pixel_weights(labels, logits, class_weights)
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
    return _smooth(_one_hot(labels, logits), label_smoothing)


#: The function of each `loss.name`.
LOSSES = {"softmax_cross_entropy": softmax_cross_entropy, "keras": keras_categorical_cross_entropy}


def make_loss(loss: ConfigDict, *, num_classes: int) -> Loss:
    """Builds the loss of `config.loss`: (logits, labels, where=None, teacher_logits=None) to (sum, count).

    Args:
      loss: the `loss` group of a config.
      num_classes: number of classes of the data set.

    Raises:
      UserError: a loss that does not exist, or class weights that do not fit the classes.
    """
    check_fields("loss", loss)
    weights = tuple(loss.class_weights)
    if weights and len(weights) != num_classes:
        raise UserError(f"loss.class_weights has {len(weights)} values for {num_classes} classes")
    if not 0 <= loss.label_smoothing < 1:
        raise UserError(f"loss.label_smoothing={loss.label_smoothing} must be at least 0 and below 1")

    def compute(logits, labels, where=None, teacher_logits=None):
        taught = {}
        if teacher_logits is not None:
            taught = {"teacher_logits": teacher_logits, "teacher_weight": loss.teacher_weight}
        return LOSSES[loss.name](
            logits, labels, class_weights=weights, label_smoothing=loss.label_smoothing, where=where, **taught
        )

    return compute


def _one_hot(labels, logits):
    """Compares with every class. XLA fuses this into the sum around it, so the array is never stored."""
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32).reshape(1, 1, 1, -1)
    return (labels.astype(jnp.int32)[..., None] == classes).astype(logits.dtype)


def _smooth(one_hot, label_smoothing):
    if not label_smoothing:
        return one_hot
    return one_hot * (1 - label_smoothing) + label_smoothing / one_hot.shape[-1]


def _pixel_weights(labels, logits, class_weights):
    weights = jnp.asarray(class_weights, logits.dtype).reshape(1, 1, 1, -1)
    return jnp.sum(_one_hot(labels, logits) * weights, axis=-1)
