"""Statistics of the values of each channel, collected while the images of a data set are read."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ChannelStatistics:
    """Sums over the pixels of images, per channel.

    Attributes:
      pixels: number of pixels.
      low: smallest value.
      high: largest value.
      total: sum of the values.
      squares: sum of their squares.
    """

    pixels: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    total: tuple[float, ...]
    squares: tuple[float, ...]

    @classmethod
    def of(cls, image: np.ndarray) -> "ChannelStatistics":
        """The statistics of one image (height, width, channels). Sums are float64."""
        # One channel at a time: a float64 copy of a whole image could be eight times its size.
        channels = [image[..., channel].ravel() for channel in range(image.shape[2])]
        totals = [(channel.sum(dtype=np.float64), np.square(channel, dtype=np.float64).sum()) for channel in channels]
        return cls(
            image.shape[0] * image.shape[1],
            tuple(float(channel.min()) for channel in channels),
            tuple(float(channel.max()) for channel in channels),
            tuple(float(total) for total, _ in totals),
            tuple(float(squares) for _, squares in totals),
        )

    @classmethod
    def merge(cls, parts: Iterable["ChannelStatistics"]) -> "ChannelStatistics":
        """The statistics of several sets of images together; at least one."""
        parts = list(parts)
        fields = {name: np.array([getattr(part, name) for part in parts]) for name in ("low", "high")}
        sums = {name: np.sum([getattr(part, name) for part in parts], axis=0) for name in ("total", "squares")}
        return cls(
            sum(part.pixels for part in parts),
            tuple(fields["low"].min(axis=0).tolist()),
            tuple(fields["high"].max(axis=0).tolist()),
            tuple(sums["total"].tolist()),
            tuple(sums["squares"].tolist()),
        )

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel."""
        return tuple(total / self.pixels for total in self.total)

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of each channel."""
        variances = np.array(self.squares) / self.pixels - np.square(self.mean)
        return tuple(np.sqrt(np.maximum(variances, 0)).tolist())

    def to_json(self) -> dict[str, Any]:
        """The statistics as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ChannelStatistics":
        """The statistics of the values that `to_json` returned.

        Raises:
          KeyError, TypeError, ValueError: the values are damaged.
        """
        names = ("low", "high", "total", "squares")
        return cls(int(values["pixels"]), *(tuple(float(value) for value in values[name]) for name in names))
