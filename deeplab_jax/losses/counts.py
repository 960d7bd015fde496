"""Counts that losses divide by: labeled pixels, their weights, and images. They depend on labels, not on logits."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from deeplab_jax.labels import IGNORE_LABEL


def is_labeled(
    labels: Integer[Array, "batch height width"], where: Bool[Array, "batch height width"] | None
) -> Bool[Array, "batch height width"]:
    """True for pixels that exist and do not have the ignore label."""
    return labels != IGNORE_LABEL if where is None else (labels != IGNORE_LABEL) & where


def one_hot(
    labels: Integer[Array, "batch height width"], logits: Float[Array, "batch height width classes"]
) -> Float[Array, "batch height width classes"]:
    """Compares with every class. XLA fuses this into the sum around it, so the array is never stored."""
    return compare_with_classes(labels, logits.shape[-1]).astype(logits.dtype)


def compare_with_classes(
    labels: Integer[Array, "batch height width"], num_classes: int
) -> Bool[Array, "batch height width classes"]:
    """True where a pixel has the class."""
    classes = jnp.arange(num_classes, dtype=jnp.int32).reshape(1, 1, 1, -1)
    return labels.astype(jnp.int32)[..., None] == classes


def pixel_weights(
    labels: Integer[Array, "batch height width"],
    logits: Float[Array, "batch height width classes"],
    class_weights: tuple[float, ...],
) -> Float[Array, "batch height width"]:
    """The weight of each pixel's class; 0 for ignored pixels."""
    weights = jnp.asarray(class_weights, logits.dtype).reshape(1, 1, 1, -1)
    return jnp.sum(one_hot(labels, logits) * weights, axis=-1)


def weighted_mean_parts(
    pixel_losses: Float[Array, "batch height width"],
    labels: Integer[Array, "batch height width"],
    logits: Float[Array, "batch height width classes"],
    *,
    counted: Bool[Array, "batch height width"],
    class_weights: tuple[float, ...],
) -> tuple[Float[Array, ""], Array]:
    """Sums the losses of counted pixels and counts these pixels, both weighted by the pixels' classes.

    Returns:
      The sum, and the count: int32, or with class weights a float of the loss's type.
    """
    if not class_weights:
        return jnp.sum(jnp.where(counted, pixel_losses, 0)), jnp.sum(counted, dtype=jnp.int32)
    weights = jnp.where(counted, pixel_weights(labels, logits, class_weights), 0)
    return jnp.sum(jnp.where(counted, pixel_losses, 0) * weights), jnp.sum(weights)


def count_pixels(
    labels: Integer[Array, "batch height width"],
    *,
    class_weights: tuple[float, ...] = (),
    where: Bool[Array, "batch height width"] | None = None,
) -> Array:
    """Counts labeled pixels, weighted by their classes if there are class weights."""
    counted = is_labeled(labels, where)
    if not class_weights:
        return jnp.sum(counted, dtype=jnp.int32)
    # No gather: devices that hold parts of the labels compare on their own.
    weights = jnp.asarray(class_weights, float).reshape(1, 1, 1, -1)
    weights = jnp.sum(compare_with_classes(labels, len(class_weights)) * weights, axis=-1)
    return jnp.sum(jnp.where(counted, weights, 0))


def count_existing_pixels(
    labels: Integer[Array, "batch height width"], *, where: Bool[Array, "batch height width"] | None = None
) -> Array:
    """Counts pixels, labeled or not."""
    return jnp.sum(jnp.ones(labels.shape, bool) if where is None else where, dtype=jnp.int32)


def count_images(
    labels: Integer[Array, "batch height width"], *, where: Bool[Array, "batch height width"] | None = None
) -> Array:
    """Counts images with at least one labeled pixel."""
    return jnp.sum(jnp.any(is_labeled(labels, where), axis=(1, 2)), dtype=jnp.int32)
