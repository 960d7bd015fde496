"""The one range of values of a data set: given, or found in all of its images."""

import dataclasses
from collections.abc import Mapping

from deeplab_jax.data.channel_statistics import ChannelStatistics
from deeplab_jax.data.leaks import is_training
from deeplab_jax.data.pixel_format import PixelFormat
from deeplab_jax.data.pixel_values import ValueRange, usual_range


def complete(
    pixels: PixelFormat, statistics: Mapping[str, ChannelStatistics], value_range: ValueRange | None = None
) -> PixelFormat:
    """Adds to the format of a data set what only its values show.

    Args:
      pixels: channels and dtype.
      statistics: the statistics of each split.
      value_range: the values that a network sees as 0 and 255. Default: 0 to 255 for 8 bits, and for other dtypes the
        smallest usual range that contains every value of the data set, such as 0 to 4095.

    Returns:
      The format with its range, and with mean and standard deviation of the training splits, or of all splits if none
      is for training.
    """
    if value_range is None:
        value_range = find_range(pixels, ChannelStatistics.merge(statistics.values()))
    training = [found for split, found in statistics.items() if is_training(split)]
    merged = ChannelStatistics.merge(training or statistics.values())
    return dataclasses.replace(pixels, value_range=tuple(map(float, value_range)), mean=merged.mean, std=merged.std)


def find_range(pixels: PixelFormat, statistics: ChannelStatistics) -> ValueRange:
    """The range of a data set's values, see `complete`."""
    if pixels.dtype == "uint8":
        return 0, 255
    low, high = min(statistics.low), max(statistics.high)
    if low == high == 0:
        high = 1.0
    kind = "f" if pixels.dtype == "float32" else "u"
    found = usual_range(low, high, kind)
    return found if found[0] < found[1] else (found[0], found[0] + 1)
