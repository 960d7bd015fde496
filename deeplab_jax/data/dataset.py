"""The parts of a data set: where it comes from, how its raw files are read, and the source that training reads."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from deeplab_jax.data import channels, images, masks
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.pixel_format import PixelFormat
from deeplab_jax.data.pixel_values import ValueRange
from deeplab_jax.data.tiles import Tile, cut_examples
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL, LabelSet

#: The split of images that nobody labeled, for `unlabeled.split`.
UNLABELED = "unlabeled"


@runtime_checkable
class Source(Protocol):
    """One split of a data set, read by position. Training and evaluation need nothing else.

    Attributes:
      name: the data set's name.
      split: the split's name.
      label_set: class names and palette.
      pixels: the format of the images, a `PixelFormat`. Sources without this attribute have 8-bit RGB.
    """

    name: str
    split: str
    label_set: LabelSet

    def __len__(self) -> int:
        """The number of examples."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example: `image` (RGB uint8 of shape (H, W, 3)), `label` (uint8 of shape (H, W)) and `id` (text).

        The image has other channels and another dtype if `pixels` says so.

        `image` and `label` can also be encoded bytes, see `images.encode_image` and `images.encode_mask`.
        """

    def ids(self) -> list[str]:
        """The ids of all examples, in order."""

    def largest_size(self) -> tuple[int, int]:
        """The largest height and the largest width in the split."""


@dataclasses.dataclass(frozen=True)
class RawExample:
    """One example of a raw data set. Its files are read when it is prepared or checked.

    Attributes:
      id: the name of the example in messages, submissions and galleries.
      image: path of the image file.
      read_label: returns the label, integers of shape (height, width) with 255 as the ignore label. None for an image
        that nobody labeled: every pixel gets the ignore label.
      value_range: see `deeplab_jax.data.read_image`.
      pixels: the format of the image, if it keeps its channels and its bit depth; None makes it 8-bit RGB.
      max_pixels: see `deeplab_jax.data.read_image`.
      tile: the part of the image and of its label that is the example; None for all.
      label_files: the files that `read_label` reads. If one of them changes, what an interrupted preparation has stored
        of the example is not used again.
    """

    id: str
    image: pathlib.Path
    read_label: Callable[[], np.ndarray] | None
    value_range: ValueRange | None = None
    pixels: PixelFormat | None = None
    max_pixels: int | None = None
    tile: Tile | None = None
    label_files: tuple[pathlib.Path, ...] = ()

    def read(self, label_set: LabelSet) -> tuple[bytes | np.ndarray, np.ndarray]:
        """The image and its checked uint8 label of shape (height, width).

        The image is encoded, or an array (height, width, channels) if `pixels` is set.

        Raises:
          UserError: a file is missing or damaged, the sizes differ, or the label contains an unknown id.
        """
        image, size = self._read_image()
        label = self._read_label(size)
        masks.check_label(label, label_set, f"of {self.image.name}")
        if label.shape != size:
            turned = "; the image may have an EXIF rotation that the mask lacks" if label.shape == size[::-1] else ""
            raise UserError(
                f"image {self.image} is {size[0]}x{size[1]} (height x width), "
                f"but its mask is {label.shape[0]}x{label.shape[1]}; they must have the same size{turned}"
            )
        return image, label.astype(np.uint8)

    def read_size(self) -> tuple[int, int]:
        """(height, width) of the whole image, from its header.

        Raises:
          UserError: the header cannot be read.
        """
        if self.pixels is None:
            return images.read_header(self.image, self.image).size
        return channels.read_size(self.image, max_pixels=self.max_pixels)

    def _read_label(self, size: tuple[int, int]) -> np.ndarray:
        if self.read_label is None:
            return np.full(size, IGNORE_LABEL, np.uint8)
        if self.tile is None:
            return self.read_label()
        return _last(_labels, (self.image, self.label_files), self.read_label)[self.tile.slices]

    def _read_image(self) -> tuple[bytes | np.ndarray, tuple[int, int]]:
        if self.pixels is None:
            options = {"value_range": self.value_range, "max_pixels": self.max_pixels}
            if self.tile is None:
                return images.encode_image(self.image, **options)
            image = _last(_images, self.image, lambda: images.read_image(self.image, **options))[self.tile.slices]
            return images.encode_rgb(image), image.shape[:2]
        image = channels.read_channels(self.image, self.pixels.channels, max_pixels=self.max_pixels, window=self.tile)
        if image.dtype != self.pixels.dtype:
            raise UserError(
                f"image {self.image} has {channels.describe(image)}, but earlier images have {self.pixels.dtype}; "
                "convert them so that all are the same"
            )
        return image, image.shape[:2]


_TRIED = 10  # images of which one must show the dtype of a data set

# The last image and label that were cut into tiles, since the next tile is mostly of the same.
_images: dict[Hashable, np.ndarray] = {}
_labels: dict[Hashable, np.ndarray] = {}


def _last(cache: dict[Hashable, np.ndarray], key: Hashable, read: Callable[[], np.ndarray]) -> np.ndarray:
    if key not in cache:
        cache.clear()
        cache[key] = read()
    return cache[key]


@dataclasses.dataclass(frozen=True)
class RawDataset:
    """A raw data set.

    Attributes:
      label_set: its classes.
      splits: the examples of each split in a fixed order.
      notes: what a person should know of how the files are read, such as files that are left out; one line each.
      label_map: how the ids and colors of the files become classes; None if ids are class ids.
      rules: what labels depend on in addition to their files, such as a digest of a file for all of them. If it
        changes, an interrupted preparation starts over.
    """

    label_set: LabelSet
    splits: dict[str, list[RawExample]]
    notes: tuple[str, ...] = ()
    label_map: LabelMap | None = None
    rules: str = ""

    def with_images(
        self,
        *,
        value_range: ValueRange | None = None,
        channels: int | None = None,
        max_pixels: int | None = None,
        tile_size: Sequence[int] | None = None,
    ) -> "RawDataset":
        """The same data set with other rules for its images.

        Args:
          value_range: see `deeplab_jax.data.read_image`; with `channels`, see `PixelFormat`.
          channels: number of channels, which keep their bit depth: that of the first image that has this number. None
            makes 8-bit RGB.
          max_pixels: see `deeplab_jax.data.read_image`.
          tile_size: cut images larger than this (height, width) into tiles.

        Raises:
          UserError: the number of channels is not possible, or none of the first images has it.
        """
        pixels = None if channels is None else self._find_pixels(channels, max_pixels)
        changes = {"value_range": value_range, "pixels": pixels, "max_pixels": max_pixels}
        splits = {
            split: [dataclasses.replace(example, **changes) for example in examples]
            for split, examples in self.splits.items()
        }
        if tile_size is not None:
            splits = {split: cut_examples(examples, tile_size) for split, examples in splits.items()}
        return dataclasses.replace(self, splits=splits)

    @property
    def pixels(self) -> PixelFormat | None:
        """The format of the images, without the range that is found in them; None for 8-bit RGB."""
        first = self._first()
        return None if first is None else first.pixels

    @property
    def value_range(self) -> ValueRange | None:
        """The values that become black and white, if they are given."""
        first = self._first()
        return None if first is None else first.value_range

    def _first(self) -> RawExample | None:
        return next((example for examples in self.splits.values() for example in examples), None)

    def _find_pixels(self, count: int, max_pixels: int | None) -> PixelFormat:
        error = None
        examples = [example for examples in self.splits.values() for example in examples]
        for example in examples[:_TRIED]:  # a wrong image is reported with the others, when all are read
            try:
                values = channels.read_channels(example.image, count, max_pixels=max_pixels)
            except UserError as found:
                error = error or found
            else:
                return PixelFormat(count, values.dtype.name)
        if error is not None:
            raise error
        return PixelFormat(count)


@dataclasses.dataclass(frozen=True)
class Download:
    """A published file.

    Attributes:
      url: its address.
      digest: digest of its content, `md5:` or `sha256:` and hex digits.
      file_name: name on this machine (default: the end of the address).
    """

    url: str
    digest: str
    file_name: str | None = None

    @property
    def name(self) -> str:
        """Name of the file on this machine."""
        return self.file_name or self.url.rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An entry of the registry. Give either `read_raw` or `open_split`.

    With `read_raw`, `deeplab-jax data prepare` checks every raw example once and writes ArrayRecord files, which
    training then reads. With `open_split`, there is nothing to prepare: examples come from your own code.

    Attributes:
      name: value of `config.data.name`, in snake case.
      read_raw: takes the folder of the raw data set and returns a `RawDataset`. It does not read images.
      options: names of the keyword arguments that `read_raw` accepts.
      label_map: how the ids of its masks become classes, if every copy of the data set has the same ids.
      archives: published archives of the raw data set; without them, users have to pass `--source`.
      archive_names: patterns of the names of official archives that a folder passed with `--source` can contain
        (default: those of `archives`).
      publisher: where to get the data set if there are no `archives`.
      is_needed: whether to unpack an archive's file of this name.
      extra_lists: published lists of example ids that are placed next to the archive's `train.txt`.
      sizes: published number of examples of each split. Preparing another number warns.
      open_split: takes a split's name and the keyword arguments `data_dir`, `num_examples` and `image_size` of
        `registry.open_source`, and returns a `Source`.
      splits: names of the splits that `open_split` knows.
      check_limit: number of examples of each split that `deeplab-jax data check` reads; None reads all of them.
    """

    name: str
    read_raw: Callable[..., RawDataset] | None = None
    options: tuple[str, ...] = ()
    label_map: LabelMap | None = None
    archives: tuple[Download, ...] = ()
    archive_names: tuple[str, ...] = ()
    publisher: str | None = None
    is_needed: Callable[[str], bool] = lambda name: True
    extra_lists: tuple[Download, ...] = ()
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    open_split: Callable[..., Source] | None = None
    splits: tuple[str, ...] = ()
    check_limit: int | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(f"data set name {self.name!r} must be in snake case, for example street_scenes")
        if (self.read_raw is None) == (self.open_split is None):
            raise UserError(f"data set {self.name}: give either read_raw or open_split")
        if self.open_split is not None and not self.splits:
            raise UserError(f"data set {self.name}: splits must name the splits that open_split knows")
