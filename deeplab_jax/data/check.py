"""Checking a data set, raw or prepared: reads every example and lists every problem by name."""

import dataclasses
import functools
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64
from rich.table import Table

from deeplab_jax import progress
from deeplab_jax.data import masks, process_pool
from deeplab_jax.data.channel_statistics import ChannelStatistics
from deeplab_jax.data.dataset import UNLABELED, RawExample, Source
from deeplab_jax.data.leaks import find_leaks, is_scoring, is_training
from deeplab_jax.data.pipeline import decode_example
from deeplab_jax.data.pixel_format import PixelFormat, pixels_of
from deeplab_jax.data.pixel_range import complete
from deeplab_jax.data.pixel_values import ValueRange
from deeplab_jax.data.prepare import open_raw
from deeplab_jax.data.prepared import prepared_folder
from deeplab_jax.data.registry import default_data_dir, get_dataset, open_source, split_names
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL, LabelSet

_MOST_UNKNOWN = 50  # ids and colors without a class that a table lists


@dataclasses.dataclass
class SplitReport:
    """The statistics and problems of one split. Examples with problems are not counted in pixels, images and sizes.

    Attributes:
      ids: the ids of all examples, in order.
      problems: one line each, naming the file or the example.
      pixels: number of pixels of each class; the last entry is the ignore label.
      images: number of images that contain each class; the last entry is the ignore label.
      smallest: smallest height and smallest width; None if no example could be read.
      largest: largest height and largest width.
      unknown: number of pixels and of images of each id or color (`#rrggbb`) that is not assigned to any class.
      channels: statistics of the channels; None for 8-bit RGB.
    """

    ids: list[str]
    problems: list[str]
    pixels: Int64[np.ndarray, " classes_and_ignore"]
    images: Int64[np.ndarray, " classes_and_ignore"]
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    unknown: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    channels: ChannelStatistics | None = None

    @property
    def num_examples(self) -> int:
        """The number of examples in the split, including those with problems."""
        return len(self.ids)


@dataclasses.dataclass
class Report:
    """The result of `check`: a report per split, one line per pair of splits that share images, and notes.

    A note is not a problem. It says how files are read, for example which are left out. `pixels` is the format of
    images that keep their channels, with the range that was found in them; None for 8-bit RGB.
    """

    name: str
    label_set: LabelSet
    splits: dict[str, SplitReport]
    leaks: list[str]
    notes: tuple[str, ...] = ()
    pixels: PixelFormat | None = None

    @property
    def ok(self) -> bool:
        """True if no problem was found."""
        return not self.leaks and not any(split.problems for split in self.splits.values())


def check(
    name: str,
    *,
    data_dir: pathlib.Path | None = None,
    source: pathlib.Path | None = None,
    value_range: ValueRange | None = None,
    channels: int | None = None,
    max_pixels: int | None = None,
    tile_size: Sequence[int] | None = None,
    reduce_zero_label: bool | None = None,
    ignore_ids: Sequence[int] | None = None,
    workers: int = 1,
) -> Report:
    """Reads every example of a data set. Checks that sizes agree, labels are valid, and splits share no images.

    Args:
      name: one of `dataset_names`. Of generated data sets a sample is read.
      data_dir: folder of prepared data sets; default: `default_data_dir`.
      source: folder or archive of a raw data set, to check it instead of the prepared one.
      value_range: see `prepare`; for `source`.
      channels: see `prepare`; for `source`.
      max_pixels: see `prepare`; for `source`.
      tile_size: see `prepare`; for `source`.
      reduce_zero_label: see `prepare`; for `source`.
      ignore_ids: see `prepare`; for `source`.
      workers: see `prepare`; for `source`.

    Returns:
      The report, including the problems of examples, which are not raised.

    Raises:
      UserError: the data set does not exist or is not prepared, or the folder has another layout.
    """
    data_dir = default_data_dir() if data_dir is None else data_dir
    notes = ()
    if source is not None:
        options = {"reduce_zero_label": reduce_zero_label, "ignore_ids": ignore_ids}
        with process_pool.use(workers), open_raw(name, source, **options) as (raw, shown):
            label_set, notes = raw.label_set, raw.notes
            raw = raw.with_images(
                value_range=value_range, channels=channels, max_pixels=max_pixels, tile_size=tile_size
            )
            splits, pixels = _check_splits(raw.splits, _read_raw_labels, label_set), raw.pixels
            statistics = {split: found.channels for split, found in splits.items() if found.channels is not None}
            if pixels is not None and statistics:
                pixels = complete(pixels, statistics, value_range)
            for found in splits.values():
                found.problems = [shown(line) for line in found.problems]
    else:
        opened = _open_splits(name, data_dir)
        label_set = next(iter(opened.values())).label_set
        splits = _check_splits(opened, _read_labels, label_set, get_dataset(name).check_limit)
        pixels = pixels_of(next(iter(opened.values())))
        pixels = None if pixels.is_rgb else pixels
    leaks = find_leaks({f"{name}/{split}": found.ids for split, found in splits.items()})
    if source is None and name in ("sbd", "voc2012_segmentation"):
        leaks += _find_sbd_leaks(data_dir)
    return Report(name, label_set, splits, leaks, notes, pixels)


def report_tables(report: Report) -> list[Table]:
    """The report as tables: the classes of each split, then problems, leaks and notes, if there are any."""
    tables = []
    names = [*report.label_set.class_names, f"ignored ({IGNORE_LABEL})"]
    for split, found in report.splits.items():
        title = f"{report.name}/{split}: {found.num_examples} examples"
        table = Table(title=title, title_justify="left", caption_justify="left", min_width=len(title))
        if found.smallest is not None:
            table.caption = f"{_size(found.smallest)} to {_size(found.largest)} (height x width)"
        table.add_column("class")
        for column in ("pixels", "share", "images"):
            table.add_column(column, justify="right")
        total = max(int(found.pixels.sum()), 1)
        for class_name, pixels, containing in zip(names, found.pixels, found.images, strict=True):
            table.add_row(class_name, f"{pixels:,}", f"{pixels / total:.2%}", f"{containing:,}")
        tables.append(table)
        if found.channels is not None:
            tables.append(_channel_table(split, found.channels, report.pixels))
        if found.unknown:
            tables.append(_unknown_table(split, found.unknown))
    problems = [f"{split}: {line}" for split, found in report.splits.items() for line in found.problems]
    for title, lines in (("problems", problems), ("leaks", report.leaks), ("notes", report.notes)):
        if lines:
            table = Table(title=f"{title}: {len(lines)}", title_justify="left", show_header=False)
            table.add_column(overflow="fold")
            for line in lines:
                table.add_row(line)
            tables.append(table)
    return tables


def _channel_table(split: str, found: ChannelStatistics, pixels: PixelFormat) -> Table:
    table = Table(title=f"{split}: channels", title_justify="left", caption=str(pixels), caption_justify="left")
    for column in ("channel", "smallest", "largest", "mean", "std"):
        table.add_column(column, justify="right")
    rows = zip(found.low, found.high, found.mean, found.std, strict=True)
    for channel, values in enumerate(rows):
        table.add_row(str(channel), *(f"{value:.6g}" for value in values))
    return table


def _unknown_table(split: str, unknown: dict[str, tuple[int, int]]) -> Table:
    table = Table(title=f"{split}: ids and colors without a class", title_justify="left")
    table.add_column("id or color")
    for column in ("pixels", "images"):
        table.add_column(column, justify="right")
    for value, (pixels, containing) in sorted(unknown.items(), key=lambda item: -item[1][0])[:_MOST_UNKNOWN]:
        table.add_row(value, f"{pixels:,}", f"{containing:,}")
    if len(unknown) > _MOST_UNKNOWN:
        table.caption = f"and {len(unknown) - _MOST_UNKNOWN} others"
    return table


# The id of an example; and the pixels of each label, the size of its label and the statistics of its channels, or the
# reason why it could not be read.
_Counted = tuple[Int64[np.ndarray, " 256"], tuple[int, int], ChannelStatistics | None]
_Read = tuple[str, _Counted | UserError]


def _open_splits(name: str, data_dir: pathlib.Path) -> dict[str, Source]:
    return {split: open_source(name, split, data_dir=data_dir) for split in split_names(name, data_dir=data_dir)}


def _read_raw_labels(examples: list[RawExample], count: int, label_set: LabelSet) -> Iterator[_Read]:
    found = process_pool.map_in_order(functools.partial(_count_raw, label_set), examples[:count])
    return zip((example.id for example in examples), found, strict=False)


def _count_raw(label_set: LabelSet, example: RawExample) -> _Counted | UserError:
    try:
        return _count(*example.read(label_set))
    except UserError as error:
        return error


def _count(image: bytes | np.ndarray, label: np.ndarray) -> _Counted:
    statistics = None if isinstance(image, bytes) else ChannelStatistics.of(image)
    return np.bincount(label.ravel(), minlength=256).astype(np.int64), label.shape, statistics


def _read_labels(source: Source, count: int, label_set: LabelSet) -> Iterator[_Read]:
    has_channels = not pixels_of(source).is_rgb
    for i in range(count):
        example_id = f"example {i}"
        try:
            example = source[i]
            example_id = example["id"]
            example = decode_example(example)
            found = _count(example["image"] if has_channels else b"", _checked_label(example, label_set))
        except UserError as error:
            found = error
        yield example_id, found


def _checked_label(example: dict[str, Any], label_set: LabelSet) -> np.ndarray:
    image, label = example["image"], example["label"]
    if image.shape[:2] != label.shape:
        raise UserError(
            f"the stored image of {example['id']} is {_size(image.shape)}, but its mask is {_size(label.shape)} "
            "(height x width); prepare the data set again"
        )
    masks.check_label(label, label_set, f"of {example['id']}")
    return label


def _check_splits(
    opened: Mapping[str, Any],
    read: Callable[[Any, int, LabelSet], Iterator[_Read]],
    label_set: LabelSet,
    limit: int | None = None,
) -> dict[str, SplitReport]:
    splits = {}
    for split, examples in opened.items():
        count = len(examples) if limit is None else min(limit, len(examples))
        labels = progress.track(read(examples, count, label_set), f"check {split}", total=count)
        splits[split] = _check_split(split, labels, label_set)
    return splits


def _check_split(split: str, examples: Iterable[_Read], label_set: LabelSet) -> SplitReport:
    counts = np.zeros((2, 256), np.int64)
    ids, problems, sizes, unknown, values = [], [], [], {}, []
    for example_id, found in examples:
        ids.append(example_id)
        if isinstance(found, UserError):
            problems.append(str(found))
            if isinstance(found, masks.UnknownLabels):
                for value, count in found.described().items():
                    before = unknown.get(value, (0, 0))
                    unknown[value] = (before[0] + count, before[1] + 1)
            continue
        pixels, size, channels = found
        values += [] if channels is None else [channels]
        counts += [pixels, pixels > 0]
        sizes.append(size)
    if not ids:
        problems.append(f"split {split} is empty; check the list that names its images")
    problems += [f"{example_id} is listed {count} times" for example_id, count in Counter(ids).items() if count > 1]
    pixels, containing = counts[:, [*range(label_set.num_classes), IGNORE_LABEL]]
    report = SplitReport(ids, problems, pixels, containing, unknown=unknown)
    report.channels = ChannelStatistics.merge(values) if values else None
    if sizes and not pixels[:-1].sum() and split != UNLABELED:
        problems.append(f"every pixel is ignored ({IGNORE_LABEL}); the split cannot be trained on or evaluated")
    if sizes:
        report.smallest = tuple(int(extent) for extent in np.min(sizes, axis=0))
        report.largest = tuple(int(extent) for extent in np.max(sizes, axis=0))
    return report


def _find_sbd_leaks(data_dir: pathlib.Path) -> list[str]:
    """SBD's training images in VOC 2012's val, if both data sets are prepared in the same folder."""
    names = ("sbd", "voc2012_segmentation")
    if not all(prepared_folder(name, data_dir).is_dir() for name in names):
        return []
    sbd, voc = (_open_splits(name, data_dir) for name in names)
    ids = {f"sbd/{split}": source.ids() for split, source in sbd.items() if is_training(split)}
    ids |= {f"voc2012_segmentation/{split}": source.ids() for split, source in voc.items() if is_scoring(split)}
    return find_leaks(ids, "; train on SBD's train_noval or VOC's trainaug to score there")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
