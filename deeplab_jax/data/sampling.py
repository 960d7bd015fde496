"""Repeat factor sampling: images of rare classes come more often (LVIS, arXiv 1908.03195, section 4.1)."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from deeplab_jax.data import images
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL


def classes_present(source, *, unreadable: str = "raise") -> Bool[np.ndarray, "examples classes"]:
    """Which classes each label map of a source has a pixel of; reads all of them.

    Args:
      source: of `open_source`.
      unreadable: `config.data.unreadable`; with `skip` an example that cannot be read has no class.

    Raises:
      UserError: an example cannot be read, and `unreadable` is `raise`.
    """
    present = np.zeros((len(source), source.label_set.num_classes), bool)
    for i in range(len(source)):
        try:
            example = source[i]
            label_map = example["label"]
            if isinstance(label_map, bytes):
                label_map = images.decode_label_map(label_map, example["id"])
        except UserError:
            if unreadable == "raise":
                raise
            continue
        found = np.unique(label_map)
        present[i, found[found != IGNORE_LABEL]] = True
    return present


def repeat_factors(present: Bool[np.ndarray, "examples classes"], threshold: float) -> Float[np.ndarray, "examples"]:
    """How often each image comes: max(1, sqrt(threshold / f)), f being the share of images with its rarest class.

    A class that no image has counts as being in one.
    """
    share = present.mean(axis=0)
    of_class = np.sqrt(threshold / np.maximum(share, 1 / len(present))).clip(min=1)
    return np.where(present, of_class, 1).max(axis=1)


class RepeatedSource:
    """A source in which each example stands as often as its repeat factor says; a fraction is rounded by chance.

    It is longer than the source. Epochs of a config are still of the source's length.
    """

    def __init__(self, source, threshold: float, *, seed: int, unreadable: str = "raise"):
        """Reads all label maps.

        Args:
          source: of `open_source`.
          threshold: the share of images below which a class counts as rare.
          seed: of the rounding.
          unreadable: as in `classes_present`.

        Raises:
          UserError: as `classes_present`.
        """
        factors = repeat_factors(classes_present(source, unreadable=unreadable), threshold)
        rng = np.random.default_rng(seed)
        counts = np.floor(factors + rng.random(len(factors))).astype(int)
        self._source, self._positions = source, np.repeat(np.arange(len(source)), counts)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._positions[index])]
