"""Repeat factor sampling: oversamples images that contain rare classes (LVIS, arXiv 1908.03195, section 4.1)."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from deeplab_jax.data import images
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL


def find_classes(source, *, unreadable: str = "raise") -> Bool[np.ndarray, "examples classes"]:
    """Reads all labels of a source and tells which classes each of them contains.

    Args:
      source: see `open_source`.
      unreadable: `config.data.unreadable`. With "skip", an example that cannot be read contains no class.

    Raises:
      UserError: an example cannot be read and `unreadable` is "raise".
    """
    present = np.zeros((len(source), source.label_set.num_classes), bool)
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
        found = np.unique(label)
        present[i, found[found != IGNORE_LABEL]] = True
    return present


def repeat_factors(present: Bool[np.ndarray, "examples classes"], threshold: float) -> Float[np.ndarray, "examples"]:
    """The repeat factor of each image: max(1, sqrt(threshold / f)), where f is the frequency of its rarest class.

    The frequency of a class is the fraction of images that contain it. A class that appears in no image is treated as
    if it appeared in one.
    """
    frequency = present.mean(axis=0)
    per_class = np.sqrt(threshold / np.maximum(frequency, 1 / len(present))).clip(min=1)
    return np.where(present, per_class, 1).max(axis=1)


class RepeatedSource:
    """A source that repeats each example according to its repeat factor, rounded up or down at random.

    It is longer than the original source. The epochs of a config still have the original length.
    """

    def __init__(self, source, threshold: float, *, seed: int, unreadable: str = "raise"):
        """Reads all labels.

        Args:
          source: see `open_source`.
          threshold: frequency below which a class counts as rare.
          seed: seed of the random rounding.
          unreadable: see `find_classes`.

        Raises:
          UserError: see `find_classes`.
        """
        factors = repeat_factors(find_classes(source, unreadable=unreadable), threshold)
        rng = np.random.default_rng(seed)
        counts = np.floor(factors + rng.random(len(factors))).astype(int)
        self._source, self._positions = source, np.repeat(np.arange(len(source)), counts)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._positions[index])]
