"""Checking a data set, raw or prepared: every example is read, and everything wrong is listed by name."""

import dataclasses
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64
from rich.console import Console
from rich.table import Table

from deeplab_jax.data import builder, default_data_dir, images, open_source, split_names
from deeplab_jax.data.pipeline import decode_example
from deeplab_jax.data.prepare import progress_bar, read_raw
from deeplab_jax.data.sources.synthetic import SPLIT_SIZES, SyntheticSource
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL, LabelSet

_SYNTHETIC_DRAWN = 100  # scenes a split: they are all alike, so a sample tells
_NAMED = 5  # shared ids that a leak names; it counts the rest

# trainval is train and val by construction: it is neither for training towards val nor a split to score on.
_TRAINING = re.compile(r"train(?!_?val)")
_SCORING = re.compile(r"val|test")


@dataclasses.dataclass
class SplitReport:
    """What the examples of one split hold; those with problems are not counted in pixels, images and sizes.

    Attributes:
      ids: of every example, in order.
      problems: one line each, naming the file or the example.
      pixels: per class, void last.
      images: in which the class, or void, appears.
      smallest: least height and least width; None if no example could be read.
      largest: largest height and largest width.
    """

    ids: list[str]
    problems: list[str]
    pixels: Int64[np.ndarray, " classes_and_void"]
    images: Int64[np.ndarray, " classes_and_void"]
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None

    @property
    def num_examples(self) -> int:
        """How many examples the split lists, wrong ones included."""
        return len(self.ids)


@dataclasses.dataclass
class Report:
    """What `check` found: a report per split, and one line for every pair of splits that share images."""

    name: str
    label_set: LabelSet
    splits: dict[str, SplitReport]
    leaks: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.leaks and not any(split.problems for split in self.splits.values())


def check(
    name: str,
    *,
    data_dir: pathlib.Path | None = None,
    source: pathlib.Path | None = None,
    console: Console | None = None,
) -> Report:
    """Reads every example of a data set: sizes agree, labels are classes or void, splits share no images.

    Args:
      name: one of `deeplab_jax.data.SOURCES`; of `synthetic` a sample is drawn.
      data_dir: where data sets are prepared; default: `default_data_dir`.
      source: the folder of a raw data set, checked instead of the prepared one.
      console: shows progress on it.

    Returns:
      The report; what is wrong with examples is in it, not raised.

    Raises:
      UserError: there is no such data set, it is not prepared, or the folder has another layout.
    """
    data_dir = default_data_dir() if data_dir is None else data_dir
    if source is not None:
        layout = read_raw(name, source)
        labels, sources = layout.label_set, layout.splits
    else:
        sources = _open_splits(name, data_dir)
        labels = next(iter(sources.values())).label_set
    read = _stored if source is None else _raw
    splits = {}
    with progress_bar(console or Console(quiet=True)) as progress:
        for split, opened in sources.items():
            examples = progress.track(read(opened, labels), total=len(opened), description=split)
            splits[split] = _check_split(split, examples, labels)
    leaks = _leaks({f"{name}/{split}": found.ids for split, found in splits.items()})
    if source is None and name in ("sbd", "voc2012_segmentation"):
        leaks += _sbd_leaks(data_dir)
    return Report(name, labels, splits, leaks)


def report_tables(report: Report) -> list[Table]:
    """The report for the console: per split a table of classes, then the problems and the leaks, if there are any."""
    tables = []
    names = [*report.label_set.class_names, f"void ({IGNORE_LABEL})"]
    for split, found in report.splits.items():
        title = f"{report.name}/{split}: {found.num_examples} examples"
        table = Table(title=title, title_justify="left", caption_justify="left", min_width=len(title))
        if found.smallest is not None:
            table.caption = f"{_size(found.smallest)} to {_size(found.largest)} (height x width)"
        table.add_column("class")
        for column in ("pixels", "share", "images"):
            table.add_column(column, justify="right")
        total = max(int(found.pixels.sum()), 1)
        for class_name, pixels, images in zip(names, found.pixels, found.images, strict=True):
            table.add_row(class_name, f"{pixels:,}", f"{pixels / total:.2%}", f"{images:,}")
        tables.append(table)
    problems = [f"{split}: {line}" for split, found in report.splits.items() for line in found.problems]
    for title, lines in (("problems", problems), ("leaks", report.leaks)):
        if lines:
            table = Table(title=f"{title}: {len(lines)}", title_justify="left", show_header=False)
            table.add_column(overflow="fold")
            for line in lines:
                table.add_row(line)
            tables.append(table)
    return tables


# An example of a split: its id, and its label map or what is wrong with it.
_Example = tuple[str, np.ndarray | UserError]


def _open_splits(name: str, data_dir: pathlib.Path) -> dict[str, "builder.PreparedSource | SyntheticSource"]:
    if name == "synthetic":
        return {split: SyntheticSource(split, min(size, _SYNTHETIC_DRAWN)) for split, size in SPLIT_SIZES.items()}
    return {split: open_source(name, split, data_dir=data_dir) for split in split_names(name, data_dir=data_dir)}


def _raw(records: list[builder.Record], label_set: LabelSet) -> Iterator[_Example]:
    for record in records:
        try:
            found = record.read(label_set)[1]
        except UserError as error:
            found = error
        yield record.id, found


def _stored(source, label_set: LabelSet) -> Iterator[_Example]:
    for i in range(len(source)):
        example_id = f"example {i}"
        try:
            example = source[i]
            example_id = example["id"]
            found = _label_map(decode_example(example), label_set)
        except UserError as error:
            found = error
        yield example_id, found


def _label_map(example: dict[str, Any], label_set: LabelSet) -> np.ndarray:
    image, label_map = example["image"], example["label"]
    if image.shape[:2] != label_map.shape:
        raise UserError(
            f"the stored image of {example['id']} is {_size(image.shape)}, but its mask is {_size(label_map.shape)} "
            "(height x width); prepare the data set again"
        )
    images.check_ids(label_map, label_set, f"of {example['id']}")
    return label_map


def _check_split(split: str, examples: Iterable[_Example], label_set: LabelSet) -> SplitReport:
    counts = np.zeros((2, 256), np.int64)
    ids, problems, sizes = [], [], []
    for example_id, found in examples:
        ids.append(example_id)
        if isinstance(found, UserError):
            problems.append(str(found))
            continue
        pixels = np.bincount(found.ravel(), minlength=256)
        counts += [pixels, pixels > 0]
        sizes.append(found.shape)
    if not ids:
        problems.append(f"split {split} is empty; check the list that names its images")
    problems += [f"{example_id} is listed {count} times" for example_id, count in Counter(ids).items() if count > 1]
    pixels, images = counts[:, [*range(label_set.num_classes), IGNORE_LABEL]]
    report = SplitReport(ids, problems, pixels, images)
    if sizes:
        report.smallest = tuple(int(extent) for extent in np.min(sizes, axis=0))
        report.largest = tuple(int(extent) for extent in np.max(sizes, axis=0))
    return report


def _leaks(ids: dict[str, list[str]], advice: str = "") -> list[str]:
    """A line for every split to train on that shares images with one to score on; keys are `data set/split`."""
    lines = []
    for training, training_ids in ids.items():
        for scoring, scoring_ids in ids.items():
            if not (_TRAINING.match(training.split("/")[1]) and _SCORING.match(scoring.split("/")[1])):
                continue
            shared = sorted(set(training_ids) & set(scoring_ids))
            if shared:
                named = ", ".join(shared[:_NAMED])
                lines.append(f"{training} and {scoring} share images: {named}, {len(shared)} in all{advice}")
    return lines


def _sbd_leaks(data_dir: pathlib.Path) -> list[str]:
    """SBD's training images in VOC 2012's val, if both are prepared in the same place."""
    names = ("sbd", "voc2012_segmentation")
    if not all(builder.prepared_folder(name, data_dir).is_dir() for name in names):
        return []
    sbd, voc = (_open_splits(name, data_dir) for name in names)
    ids = {f"sbd/{split}": source.ids() for split, source in sbd.items() if _TRAINING.match(split)}
    ids |= {f"voc2012_segmentation/{split}": source.ids() for split, source in voc.items() if _SCORING.match(split)}
    return _leaks(ids, "; train on SBD's train_noval or on VOC's trainaug to score there")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
