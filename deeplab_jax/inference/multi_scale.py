"""Scaled and mirrored views of images, and the average of their predictions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped


class View(NamedTuple):
    """Logits of one scaled and possibly mirrored version of a batch, mirrored back.

    Attributes:
      size: height and width of the network input.
      logits: logits at this size.
      coarse: logits at the classifier's resolution.
    """

    size: tuple[int, int]
    logits: Float[Array, "batch height width classes"]
    coarse: Float[Array, "batch _ _ classes"]


def network_views(
    model: nn.Module,
    variables: Any,
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    *,
    scales: Sequence[int | float] = (1.0,),
    flip: bool = False,
) -> Iterator[View]:
    """Applies the network to images at several scales, each also mirrored left to right (arXiv 1706.05587, 4.1).

    Padding is part of the batch and is scaled and mirrored with it. `scaled_size` gives the size at a scale, which
    keeps sizes of k * stride + 1 in this form if possible. Scaling is bilinear with half-pixel centers, without
    antialiasing, on float values.

    Args:
      model: the network.
      variables: its `params` and `batch_stats`.
      images: RGB of range 0-255, or what else the network takes.
      scales: factors for height and width.
      flip: also see every scale mirrored.
    """

    def apply(images):
        logits, endpoints = model.apply(variables, images, train=False)
        return logits, endpoints["logits"]

    def resize(images, size):
        return model.ops.resize_bilinear(images, size)

    seen = map_views(apply, images, resize, scales=scales, flip=flip)
    return (View(size, logits, coarse) for size, (logits, coarse) in seen)


def map_views(
    apply: Callable[[Any], Any],
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    resize: Callable[[Any, tuple[int, int]], Any],
    *,
    scales: Sequence[int | float],
    flip: bool,
) -> Iterator[tuple[tuple[int, int], Any]]:
    """Calls a function with the views of `network_views`.

    Args:
      apply: maps views to an array, or a tuple of arrays, of shape (batch, height, width, _).
      images: the images.
      resize: resizes float32 images to (height, width).
      scales: factors for height and width.
      flip: also see every scale mirrored.

    Yields:
      The size of each view and the result of `apply`, mirrored back.
    """
    for size, scaled in ((scaled_size(images.shape[1:3], scale), images) for scale in scales):
        if size != tuple(images.shape[1:3]):
            scaled = resize(jnp.asarray(images, jnp.float32), size)
        yield size, apply(scaled)
        if flip:
            yield size, jax.tree.map(lambda result: result[:, :, ::-1], apply(scaled[:, :, ::-1]))


def view_sizes(size: Sequence[int], scales: Sequence[int | float], flip: bool) -> list[tuple[int, int]]:
    """Returns the height and width of the network input for each of `network_views`."""
    return [scaled_size(size, scale) for scale in scales for _ in range(1 + flip)]


def scaled_size(size: Sequence[int], scale: int | float) -> tuple[int, int]:
    """Returns height and width at a scale: `(n - 1) * scale + 1`, rounded, which keeps corner pixels at the corners."""
    height, width = (max(1, round((extent - 1) * scale) + 1) for extent in size)
    return height, width


def mean_prediction(
    views: Sequence[Float[Array, "batch height width classes"]],
) -> Float[Array, "batch height width classes"]:
    """Returns logits of the mean probabilities of several views of a batch; the logits themselves for one view."""
    if len(views) == 1:
        return views[0]
    return log_probabilities(average_probabilities(views, axis=-1))


def average_probabilities(views: Sequence[Float[Array, "..."]], *, axis: int) -> Float[Array, "..."]:
    """Returns the mean of the views' softmax over the class axis."""
    return sum(jax.nn.softmax(logits, axis=axis) for logits in views) / len(views)


def log_probabilities(probabilities: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the logarithm of probabilities, clipped at the smallest normal number.

    The cross-entropy of these logits is that of the probabilities, and at most 87.3 per pixel in float32.
    """
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))
