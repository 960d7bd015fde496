"""Oversampling: images with rare classes, and images with classes from a list, appear more often."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64
from ml_collections import ConfigDict

from deeplab_jax.data import images
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL

logger = logging.getLogger(__name__)


def find_classes(source, *, unreadable: str = "raise") -> Bool[np.ndarray, "examples classes"]:
    """Reads all labels of a source and tells which classes each of them contains; see `count_pixels`."""
    return count_pixels(source, unreadable=unreadable) > 0


def count_pixels(source, *, unreadable: str = "raise") -> Int64[np.ndarray, "examples classes"]:
    """Reads all labels of a source and counts the pixels of each class in each of them.

    Args:
      source: see `open_source`.
      unreadable: `config.data.unreadable`. With "skip", an example that cannot be read has no pixels.

    Raises:
      UserError: an example cannot be read and `unreadable` is "raise".
    """
    num_classes = source.label_set.num_classes
    pixels = np.zeros((len(source), num_classes), np.int64)
    for i in range(len(source)):
        try:
            example = source[i]
            label = example["label"]
            if isinstance(label, bytes):
                label = images.decode_mask(label, example["id"])
        except UserError:
            if unreadable == "raise":
                raise
            continue
        pixels[i] = np.bincount(label.ravel(), minlength=IGNORE_LABEL + 1)[:num_classes]
    return pixels


def rare_class_factors(
    present: Bool[np.ndarray, "examples classes"], threshold: float
) -> Float[np.ndarray, "examples"]:
    """The repeat factor of each image: max(1, sqrt(threshold / f)), where f is the frequency of its rarest class.

    This is the sampling of LVIS (arXiv 1908.03195, section 4.1). The frequency of a class is the fraction of images
    that contain it. A class that appears in no image is treated as if it appeared in one.
    """
    frequency = present.mean(axis=0)
    per_class = np.sqrt(threshold / np.maximum(frequency, 1 / len(present))).clip(min=1)
    return np.where(present, per_class, 1).max(axis=1)


def listed_class_factors(
    present: Bool[np.ndarray, "examples classes"], classes: Sequence[int], factor: float
) -> Float[np.ndarray, "examples"]:
    """`factor` for each image that contains any of the classes, 1 for the others.

    DeepLabv3 duplicates the training images with hard classes like this (arXiv 1706.05587, section 4.1).
    """
    return np.where(present[:, list(classes)].any(axis=1), factor, 1.0)


class RepeatedSource:
    """A source that repeats each example according to its repeat factor, rounded up or down at random.

    It is longer than the original source. The epochs of a config still have the original length.
    """

    def __init__(self, source, factors: Float[np.ndarray, "examples"], *, seed: int):
        """Draws how often each example appears.

        Args:
          source: see `open_source`.
          factors: the mean number of appearances of each example.
          seed: seed of the random rounding.
        """
        rng = np.random.default_rng(seed)
        counts = np.floor(factors + rng.random(len(factors))).astype(int)
        self._source, self._positions = source, np.repeat(np.arange(len(source)), counts)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._positions[index])]


def with_repeats(source, data: ConfigDict, *, seed: int):
    """Repeats the examples of a source as a config says.

    An image that `data.repeat_threshold` and `data.repeat_classes` both repeat gets the larger factor of the two.

    Args:
      source: see `open_source`.
      data: the `data` group of a config.
      seed: seed of the random rounding of factors.

    Returns:
      The source itself if the config repeats nothing, or one that has read all labels.

    Raises:
      UserError: `data.repeat_classes` has an unknown class or one that no image contains; or see `find_classes`.
    """
    if not data.repeat_threshold and not data.repeat_classes:
        return source
    check_classes(source, data, "repeat_classes")
    present = find_classes(source, unreadable=data.unreadable)
    factors = np.ones(len(source))
    if data.repeat_threshold:
        factors = rare_class_factors(present, data.repeat_threshold)
    if data.repeat_classes:
        if not present[:, list(data.repeat_classes)].any():
            raise UserError(
                f"data.repeat_classes={tuple(data.repeat_classes)}: no image of {source.name}/{source.split} contains "
                "any of these classes; remove them"
            )
        factors = np.maximum(factors, listed_class_factors(present, data.repeat_classes, data.repeat_factor))
    repeated = RepeatedSource(source, factors, seed=seed)
    logger.info("Repeating images by class: %d images appear %d times per pass", len(source), len(repeated))
    return repeated


def check_classes(source, data: ConfigDict, field: str) -> None:
    """Checks that a field of `config.data` lists classes of the source.

    Raises:
      UserError: the field has an id that is not a class.
    """
    num_classes = source.label_set.num_classes
    if not all(0 <= label < num_classes for label in data[field]):
        raise UserError(f"data.{field}={tuple(data[field])} must be ids from 0 to {num_classes - 1}")
