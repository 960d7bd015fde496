"""Losses that treat each class as a question of its own, with a sigmoid instead of a softmax."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from deeplab_jax.losses.counts import compare_with_classes, is_labeled, one_hot, weighted_mean_parts
from deeplab_jax.ops.precision import accumulator


def binary_cross_entropy(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    class_weights: tuple[float, ...] = (),
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Array]:
    """Sums over labeled pixels the mean over classes of the binary cross-entropy, and counts the pixels.

    Args:
      logits: see `softmax_cross_entropy`.
      labels: see `softmax_cross_entropy`.
      class_weights: one factor per class that weights pixels of that class, in the sum and in the count; () for ones.
      where: pixels that exist; others contribute nothing.
    """
    logits = logits.astype(accumulator(logits.dtype))
    # -log sigmoid(x) for the true class, -log(1 - sigmoid(x)) for others: softplus(x), minus x for the true class.
    sums = jnp.sum(jax.nn.softplus(logits), axis=-1) - jnp.sum(one_hot(labels, logits) * logits, axis=-1)
    counted = is_labeled(labels, where)
    return weighted_mean_parts(sums / logits.shape[-1], labels, logits, counted=counted, class_weights=class_weights)


def focal(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
    class_weights: tuple[float, ...] = (),
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Array]:
    """Sums over labeled pixels the mean over classes of the focal loss, and counts the pixels.

    With p the sigmoid's probability of the right answer, a class has the loss -a * (1 - p)^gamma * log(p), where a is
    alpha for the true class and 1 - alpha for others (arXiv 1708.02002, equation 5).

    Args:
      logits: see `softmax_cross_entropy`.
      labels: see `softmax_cross_entropy`.
      gamma: exponent of 1 - p; 0 weights easy and hard pixels equally.
      alpha: weight of the true class.
      class_weights: see `binary_cross_entropy`.
      where: pixels that exist; others contribute nothing.
    """
    logits = logits.astype(accumulator(logits.dtype))
    is_class = compare_with_classes(labels, logits.shape[-1])
    margin = jnp.where(is_class, logits, -logits)
    # (1 - p)^gamma as an exponential: the derivative of a power is infinite at 0 for exponents below 1.
    modulation = jnp.exp(gamma * jax.nn.log_sigmoid(-margin))
    losses = jnp.where(is_class, alpha, 1 - alpha) * modulation * jax.nn.softplus(-margin)
    counted = is_labeled(labels, where)
    return weighted_mean_parts(jnp.mean(losses, axis=-1), labels, logits, counted=counted, class_weights=class_weights)
