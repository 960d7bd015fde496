"""From a picture of any size to labels at this size: what an evaluation protocol means for one picture."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from deeplab_jax import data, ops
from deeplab_jax.models import DeepLabV3Plus

# Sizes are rounded up to multiples of it, so that pictures of many sizes share few compiled programs.
_BUCKET = 64


class PicturePredictor:
    """Runs a network on single pictures as `config.eval.protocol` says, with one compiled program a size bucket.

    `whole` keeps a picture's size and pads it (one that is larger than `eval.image_size` is scaled down to fit);
    `squeeze` and `guide` resize it to `data.image_size`. Labels come at the picture's own size in any case. They equal
    those of an evaluation where both pad alike: under `whole`, with `eval.image_size` set; without it an evaluation
    pads to its largest picture and this to the bucket, and image pooling sees the padding.
    """

    def __init__(self, model: DeepLabV3Plus, variables: Any, config: ConfigDict):
        self._model, self._variables = model, variables
        self._squeeze = None if config.eval.protocol == "whole" else tuple(config.data.image_size)
        self._largest = None if config.eval.image_size is None else tuple(config.eval.image_size)
        self._antialias = config.data.antialias
        self._pad_color = data.pad_color(config.model.input_mean)

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width"]:
        """The label of every pixel."""
        height, width = image.shape[:2]
        network_input, extent = self._fit(image)
        canvas = tuple(_round_up(size) for size in (height, width))
        labels = self._run(
            self._variables,
            network_input[None],
            np.array([extent], np.int32),
            np.array([[height, width]], np.int32),
            canvas,
        )
        return np.asarray(labels)[0, :height, :width]

    def _fit(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """What the network sees, and which part of it, at the top left, is the picture."""
        if self._squeeze is not None:
            return data.resize_image(image, self._squeeze, antialias=self._antialias), self._squeeze
        extent = image.shape[:2]
        if self._largest is None:
            return data.pad_to(image, [_round_up(size) + 1 for size in extent], self._pad_color), extent
        factor = min(1.0, *(most / size for most, size in zip(self._largest, extent, strict=True)))
        if factor < 1:
            extent = tuple(max(1, math.floor(size * factor)) for size in extent)
            image = data.resize_image(image, extent)
        return data.pad_to(image, self._largest, self._pad_color), extent

    @functools.partial(jax.jit, static_argnums=(0, 5))
    def _run(self, variables, images, extents, sizes, canvas: Sequence[int]) -> jax.Array:
        logits, _ = self._model.apply(variables, images, train=False)
        return ops.predict_resized(logits.astype(jnp.float32), extents, sizes, canvas)


def _round_up(size: int) -> int:
    return math.ceil(size / _BUCKET) * _BUCKET
