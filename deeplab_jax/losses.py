"""Pixel-wise cross-entropies. Each returns a sum and a count, so that means stay exact across shards and batches."""

import difflib
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer
from ml_collections import ConfigDict

from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL

LossSum = tuple[Float[Array, ""], Float[Array, ""] | Int[Array, ""]]
Loss = Callable[[Float[Array, "batch height width classes"], Integer[Array, "batch height width"]], LossSum]

_KERAS_EPSILON = 1e-7  # keras.config.epsilon()


def softmax_cross_entropy(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    class_weights: tuple[float, ...] = (),
    label_smoothing: float = 0.0,
) -> LossSum:
    """Cross-entropy of the labelled pixels; pixels of the ignore label count neither above nor below the line.

    Computed in float32 whatever narrower dtype the logits have (float64 stays float64).

    Args:
      logits: scores before the softmax.
      labels: class ids, or `labels.IGNORE_LABEL`. Other ids are the data pipeline's to refuse.
      class_weights: one factor per class, or () for none. The loss is then the weighted mean, as PyTorch's
        `CrossEntropyLoss`: each class' term of the sum has its weight, and the count is the sum of the weights of
        the labels.
      label_smoothing: mixes each target with the uniform distribution: (1 - s) * one_hot + s / classes.

    Returns:
      The sum of the losses, and what to divide it by: the number of labelled pixels (int32), or the sum of
      their weights (float). Where nothing is labelled both are 0 and gradients are 0: divide by max(count, 1) if
      unweighted.
    """
    logits = _at_least_float32(logits)
    one_hot = _one_hot(labels, logits)
    targets = _smooth(one_hot, label_smoothing)
    labelled = labels != IGNORE_LABEL
    if class_weights:
        weights = _weights(class_weights, logits)
        targets = targets * weights
        count = jnp.sum(one_hot * weights)  # void pixels are all zero in one_hot
    else:
        count = jnp.sum(labelled, dtype=jnp.int32)
    losses = -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
    return jnp.sum(jnp.where(labelled, losses, 0)), count


def keras_categorical_cross_entropy(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    class_weights: tuple[float, ...] = (),
    label_smoothing: float = 0.0,
) -> LossSum:
    """Keras 3's `CategoricalCrossentropy` on a softmax output and one-hot targets, void pixels and all.

    Probabilities are normalised once more and clipped to [1e-7, 1 - 1e-7], beyond which gradients vanish. A void
    pixel is an all-zero one-hot vector: it adds nothing to the sum (with smoothing: the uniform part of the target)
    and still counts in the mean.

    Args:
      logits: scores before the softmax.
      labels: class ids, or `labels.IGNORE_LABEL`.
      class_weights: one factor per class, or () for none. As in `fit(class_weight=...)` they scale the loss of each
        pixel, not the count, and void, whose arg-max is 0, has the weight of class 0.
      label_smoothing: as in `softmax_cross_entropy`.

    Returns:
      The sum of the losses and the number of all pixels (int32).
    """
    logits = _at_least_float32(logits)
    one_hot = _one_hot(labels, logits)
    probabilities = jax.nn.softmax(logits)
    probabilities = probabilities / jnp.sum(probabilities, axis=-1, keepdims=True)
    log_probabilities = jnp.log(jnp.clip(probabilities, _KERAS_EPSILON, 1 - _KERAS_EPSILON))
    losses = -jnp.sum(_smooth(one_hot, label_smoothing) * log_probabilities, axis=-1)
    if class_weights:
        void_as_first = jnp.where(labels == IGNORE_LABEL, 0, labels)
        losses = losses * jnp.sum(_one_hot(void_as_first, logits) * _weights(class_weights, logits), axis=-1)
    return jnp.sum(losses), jnp.asarray(labels.size, jnp.int32)


_LOSSES = {"softmax_cross_entropy": softmax_cross_entropy, "keras": keras_categorical_cross_entropy}


def make_loss(loss: ConfigDict) -> Loss:
    """The loss that the group `loss` of a config describes, as a function of (logits, labels) to (sum, count).

    Raises:
      UserError: an unknown name, smoothing outside [0, 1), or weights that are negative or all zero; and, when the
        loss first meets logits, a number of weights other than the number of classes.
    """
    if loss.name not in _LOSSES:
        near = difflib.get_close_matches(str(loss.name), _LOSSES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"loss.name is {loss.name!r}: choose one of {', '.join(_LOSSES)}{hint}")
    if not 0 <= loss.label_smoothing < 1:
        raise UserError(f"loss.label_smoothing is {loss.label_smoothing}: set a number from 0 up to, not including, 1")
    weights = tuple(float(weight) for weight in loss.class_weights)
    if weights and not (all(weight >= 0 and math.isfinite(weight) for weight in weights) and any(weights)):
        raise UserError(f"loss.class_weights is {weights}: set factors of 0 or more, not all 0")
    return functools.partial(_LOSSES[loss.name], class_weights=weights, label_smoothing=float(loss.label_smoothing))


def _at_least_float32(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _one_hot(labels, logits):
    """A comparison that XLA fuses into the sum that consumes it: no gather, and nothing of this shape in memory."""
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32).reshape(1, 1, 1, -1)
    return (labels.astype(jnp.int32)[..., None] == classes).astype(logits.dtype)


def _smooth(one_hot, label_smoothing: float):
    return one_hot * (1 - label_smoothing) + label_smoothing / one_hot.shape[-1] if label_smoothing else one_hot


def _weights(class_weights: tuple[float, ...], logits):
    if len(class_weights) != logits.shape[-1]:
        raise UserError(
            f"loss.class_weights has {len(class_weights)} factors for {logits.shape[-1]} classes: give one per class"
        )
    return jnp.asarray(np.asarray(class_weights), logits.dtype).reshape(1, 1, 1, -1)
