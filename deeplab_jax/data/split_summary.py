"""The summary of a prepared split: its number of examples, digests of names and content, and pixels per class."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from deeplab_jax.data.channel_statistics import ChannelStatistics
from deeplab_jax.labels import IGNORE_LABEL


class SplitSummary:
    """Collects the summary of a split while its examples are written."""

    def __init__(self, num_classes: int):
        self._ids: list[str] = []
        self._content = hashlib.sha256()
        self._pixels = np.zeros(256, np.int64)
        self._num_classes = num_classes
        #: Statistics of the channels of all images; None for 8-bit RGB.
        self.channels: ChannelStatistics | None = None

    def add(
        self,
        examples: Sequence[tuple[str, str]],
        pixels: Int64[np.ndarray, " 256"],
        values: ChannelStatistics | None = None,
    ) -> None:
        """Adds examples.

        Args:
          examples: id and digest of each. The file of the image counts, not its stored form, which depends on the
            version of the encoder.
          pixels: number of pixels of each label in all of them.
          values: statistics of their channels; None for 8-bit RGB.
        """
        for example_id, content in examples:
            self._ids.append(example_id)
            self._content.update(content.encode())
        self._pixels += pixels
        if values is not None:
            self.channels = values if self.channels is None else ChannelStatistics.merge([self.channels, values])

    @property
    def class_pixels(self) -> list[int]:
        """Number of pixels of each class."""
        return [int(count) for count in self._pixels[: self._num_classes]]

    @property
    def is_all_ignored(self) -> bool:
        """True if no pixel of any mask has a class."""
        return int(self._pixels.sum()) == int(self._pixels[IGNORE_LABEL])

    def values(self) -> dict[str, Any]:
        """The summary for a JSON file: `examples`, `ids`, `content`, `class_pixels` and `ignored_pixels`."""
        return summarize_ids(self._ids) | {
            "content": self._content.hexdigest(),
            "class_pixels": self.class_pixels,
            "ignored_pixels": int(self._pixels[IGNORE_LABEL]),
        }


def summarize_ids(ids: Iterable[str]) -> dict[str, Any]:
    """The part of a summary that needs names alone: `examples`, their number, and `ids`, a digest in their order."""
    ids = list(ids)
    return {"examples": len(ids), "ids": hashlib.sha256("\0".join(ids).encode()).hexdigest()}
