"""The Lovasz-softmax loss: a continuous surrogate of the Jaccard index of each image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Integer

from deeplab_jax.losses.counts import count_images, is_labeled
from deeplab_jax.ops.precision import accumulator


def lovasz_softmax(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    where: Bool[Array, "batch height width"] | None = None,
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """Sums over images the Lovasz-softmax loss (arXiv 1705.08790, section 3.2), and counts images with labels.

    The loss of an image is the mean over the classes that its labels contain. Classes are computed one after the other,
    since each sorts the pixels of every image by their errors.

    Args:
      logits: any float type; the loss is computed in float32 or wider.
      labels: class ids, or `IGNORE_LABEL` for pixels that contribute nothing.
      where: pixels that exist; others contribute nothing.
    """
    probabilities = jax.nn.softmax(logits.astype(accumulator(logits.dtype)), axis=-1)
    batch, _, _, classes = probabilities.shape
    probabilities = jnp.moveaxis(probabilities, -1, 0).reshape(classes, batch, -1)
    counted = is_labeled(labels, where).reshape(batch, -1)
    labels_of_pixels = labels.reshape(batch, -1).astype(jnp.int32)

    def class_loss(inputs):
        label, probability = inputs
        true = (labels_of_pixels == label) & counted
        errors = jnp.where(counted, jnp.where(true, 1 - probability, probability), 0)
        weights = _error_weights(jax.lax.stop_gradient(errors), true, counted)
        return jnp.sum(errors * weights, axis=1), jnp.any(true, axis=1)

    losses, present = jax.lax.map(class_loss, (jnp.arange(classes, dtype=jnp.int32), probabilities))
    sums = jnp.sum(jnp.where(present, losses, 0), axis=0)
    means = sums / jnp.maximum(jnp.sum(present, axis=0, dtype=jnp.int32), 1).astype(sums.dtype)
    return jnp.sum(means), count_images(labels, where=where)


def _error_weights(
    errors: Float[Array, "batch pixels"], true: Bool[Array, "batch pixels"], counted: Bool[Array, "batch pixels"]
) -> Float[Array, "batch pixels"]:
    """The gradient of the Lovasz extension: how the Jaccard loss grows when a pixel joins those with larger errors.

    With I the intersection before a pixel joins and U the union after it, a true pixel adds 1 / U and another one
    I / (U * (U - 1)). The difference of two Jaccard losses would lose most of its digits.
    """
    positions = jnp.broadcast_to(jnp.arange(errors.shape[1], dtype=jnp.int32).reshape(1, -1), errors.shape)
    order = jax.lax.sort((-errors, positions, true, counted), dimension=1, num_keys=1)
    _, positions, true, counted = order
    size = jnp.sum(true, axis=1, keepdims=True, dtype=jnp.int32)
    others = jnp.cumsum(counted & ~true, axis=1, dtype=jnp.int32)
    intersection = (size - jnp.cumsum(true, axis=1, dtype=jnp.int32)).astype(errors.dtype)
    union = jnp.maximum(size + others, 1).astype(errors.dtype)
    grows = jnp.where(true, 1 / union, intersection / (union * jnp.maximum(union - 1, 1)))
    grows = jnp.where(counted, grows, 0)
    rows = jnp.arange(errors.shape[0], dtype=jnp.int32).reshape(-1, 1)
    return jnp.zeros_like(errors).at[rows, positions].set(grows, unique_indices=True)
