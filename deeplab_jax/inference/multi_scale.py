"""What evaluation and prediction share: views of images, the average of what a network says of them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8



class View(NamedTuple):
    """What the network says of one scaled, perhaps mirrored, version of a batch; not mirrored any more.

    Attributes:
      size: height and width of the network's input.
      logits: at this size.
      coarse: the same at the classifier's resolution.
    """

    size: tuple[int, int]
    logits: Float[Array, "batch height width classes"]
    coarse: Float[Array, "batch _ _ classes"]


def network_views(
    model: nn.Module,
    variables: Any,
    images: UInt8[Array | np.ndarray, "batch height width channels"],
    *,
    scales: Sequence[int | float] = (1.0,),
    flip: bool = False,
) -> Iterator[View]:
    """The views of arXiv 1706.05587, section 4.1: images at several scales, each also mirrored left to right.

    Padding belongs to the batch and is scaled and mirrored with it: at scale s a side of n pixels becomes
    `scaled_size`, which keeps sizes of k * stride + 1 such where s allows. Scaling is bilinear at half-pixel centers
    without antialiasing, of float values.

    Args:
      model: the network.
      variables: its parameters and statistics.
      images: RGB of range 0-255.
      scales: factors of both sides.
      flip: whether every scale is seen mirrored as well.
    """
    for size, scaled in ((scaled_size(images.shape[1:3], scale), images) for scale in scales):
        if size != tuple(images.shape[1:3]):
            scaled = model.ops.resize_bilinear(jnp.asarray(images, jnp.float32), size)
        logits, endpoints = model.apply(variables, scaled, train=False)
        yield View(size, logits, endpoints["logits"])
        if flip:
            logits, endpoints = model.apply(variables, scaled[:, :, ::-1], train=False)
            yield View(size, logits[:, :, ::-1], endpoints["logits"][:, :, ::-1])


def view_sizes(size: Sequence[int], scales: Sequence[int | float], flip: bool) -> list[tuple[int, int]]:
    """Height and width of what the network sees in each of `network_views`."""
    return [scaled_size(size, scale) for scale in scales for _ in range(1 + flip)]


def scaled_size(size: Sequence[int], scale: int | float) -> tuple[int, int]:
    """Height and width at a scale: `(n - 1) * scale + 1`, rounded, so that the corner pixels' centers scale."""
    height, width = (max(1, round((extent - 1) * scale) + 1) for extent in size)
    return height, width


def mean_prediction(
    views: Sequence[Float[Array, "batch height width classes"]],
) -> Float[Array, "batch height width classes"]:
    """Logits of the mean probabilities of several views of a batch; of a single one, its own."""
    if len(views) == 1:
        return views[0]
    return log_probabilities(average_probabilities(views, axis=-1))


def average_probabilities(views: Sequence[Float[Array, "..."]], *, axis: int) -> Float[Array, "..."]:
    """The mean of the views' softmax; `axis` holds the classes."""
    return sum(jax.nn.softmax(logits, axis=axis) for logits in views) / len(views)


def log_probabilities(probabilities: Float[Array, "..."]) -> Float[Array, "..."]:
    """Logits of given probabilities: their logarithm, where 0 becomes the least normal number.

    The cross-entropy of these is that of the probabilities; a pixel adds 87.3 to it at most, in float32.
    """
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))
