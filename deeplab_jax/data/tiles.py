"""Cutting large images into tiles when a data set is prepared.

A training crop of a large image would decode all of it. Tiles are examples of their own: they are read by windows
where the file allows it (`channels.open_windows`), shuffled like other examples, and scored once each. They do not
overlap, so every pixel counts once.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple


class Tile(NamedTuple):
    """A part of an image: its first row and column, and its size."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and the columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def cut(size: Sequence[int], largest: Sequence[int]) -> list[Tile]:
    """Cuts an image into tiles of nearly equal sizes.

    Args:
      size: (height, width) of the image.
      largest: the largest (height, width) of a tile.

    Returns:
      The tiles from top to bottom and left to right; a single one for an image that is not larger.
    """
    axes = []
    for extent, limit in zip(size, largest, strict=True):
        count = math.ceil(extent / limit)
        ends = [i * extent // count for i in range(count + 1)]
        axes.append([(start, stop - start) for start, stop in zip(ends[:-1], ends[1:], strict=True)])
    return [Tile(top, left, height, width) for top, height in axes[0] for left, width in axes[1]]


def cut_examples(examples: Sequence, largest: Sequence[int]) -> list:
    """Cuts the examples of a raw split whose images are larger than a tile. Reads the headers of all images.

    Args:
      examples: see `deeplab_jax.data.RawExample`. The ids of tiles end with their first row and column.
      largest: the largest (height, width) of a tile.

    Raises:
      UserError: the header of an image cannot be read.
    """
    result = []
    for example in examples:
        tiles = cut(example.read_size(), largest)
        if len(tiles) == 1:
            result.append(example)
            continue
        for tile in tiles:
            name = f"{example.id}_{tile.top}_{tile.left}"
            result.append(dataclasses.replace(example, id=name, tile=tile))
    return result
