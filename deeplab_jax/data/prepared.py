"""Prepared data sets: ArrayRecord files in the layout of TensorFlow Datasets (TFDS), written and read without it.

`tfds.builder_from_directory(folder)` and `tfds.data_source(name, data_dir=...)` open the same files. `tfds.load` does
not: TFDS has no `tf.data` reader for ArrayRecord.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import pathlib
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

from deeplab_jax.data import images, record_files, tf_example
from deeplab_jax.data.dataset import UNLABELED, RawDataset
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.pixel_format import RGB, PixelFormat
from deeplab_jax.data.pixel_range import complete
from deeplab_jax.data.split_summary import SplitSummary
from deeplab_jax.errors import UserError, from_os_error
from deeplab_jax.files import open_path, read_json, write_json
from deeplab_jax.labels import IGNORE_LABEL, LabelSet
from deeplab_jax.storage import BucketPath
from deeplab_jax.storage.local_copies import cached_files

logger = logging.getLogger(__name__)

_VERSION = "1.0.0"  # format version; TFDS expects it as the name of the folder

_NAMED = 20  # classes that a warning names

_DESCRIPTIONS = ("dataset_info", "features", "metadata")

_FEATURE = "tensorflow_datasets.core.features"
_RGB_IMAGE = {
    "pythonClassName": f"{_FEATURE}.image_feature.Image",
    "image": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}},
}


def _features(pixels: PixelFormat | None) -> dict[str, Any]:
    """The description of a record for TFDS."""
    image = _RGB_IMAGE
    if pixels is not None:
        tensor = {"dtype": pixels.dtype, "shape": {"dimensions": ["-1", "-1", str(pixels.channels)]}}
        image = {
            "pythonClassName": f"{_FEATURE}.tensor_feature.Tensor",
            "tensor": tensor | {"encoding": "bytes"},
        }
    features = {
        "id": {"pythonClassName": f"{_FEATURE}.text_feature.Text", "text": {}},
        "image": image,
        "label": {
            "pythonClassName": f"{_FEATURE}.image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "1"]}, "encodingFormat": "png"},
        },
    }
    name = f"{_FEATURE}.features_dict.FeaturesDict"
    return {"pythonClassName": name, "featuresDict": {"features": features}}


def prepared_folder(name: str, data_dir: pathlib.Path) -> pathlib.Path:
    """The folder of a prepared data set."""
    return open_path(data_dir) / name / _VERSION


def is_complete(folder: pathlib.Path) -> bool:
    """Whether all files of a prepared data set exist. Their content is not read.

    Raises:
      UserError: its description is damaged.
    """
    if not all((folder / f"{file}.json").is_file() for file in _DESCRIPTIONS):
        return False
    return all((folder / shard.filename).is_file() for shards in _shards(folder).values() for shard in shards)


class PreparedSource:
    """One or several splits of a prepared data set, read by position."""

    def __init__(self, folder: pathlib.Path, split: str):
        """Opens a split.

        Args:
          folder: see `prepared_folder`.
          split: the split's name, or several joined by "+".

        Raises:
          UserError: the folder's description is missing or damaged, or there is no room for copies of its files.
        """
        # Takes a quarter of a second to import.
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.folder, self.split, self.name = folder, split, folder.parent.name
        metadata, shards = _read_description(folder, "metadata.json"), _shards(folder)
        try:
            self.label_set = LabelSet.from_json(metadata["class_names"], metadata["palette"])
            stored = metadata.get("label_map")
            #: The ids and colors of the raw masks, to write files in their numbering; None if they are class ids.
            self.label_map = stored and LabelMap.from_json(stored, self.label_set.num_classes)
            stored = metadata.get("pixels")
            #: The format of the images.
            self.pixels = RGB if stored is None else PixelFormat.from_json(stored)
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            raise UserError(
                f"{folder / 'metadata.json'} is damaged: {error}; remove {folder} and prepare the data set again"
            ) from None
        files = [shard for part in split.split("+") for shard in shards[part]]
        local = folder
        if isinstance(folder, BucketPath):  # its records are read from copies on the local disk
            local = cached_files(folder, [file.filename for file in files])
        self._records = ArrayRecordDataSource([file._replace(filename=str(local / file.filename)) for file in files])
        self._largest_size = None
        stored = metadata.get("splits", {})
        #: The values of `SplitSummary` of each split; None in data sets of older versions.
        self.summaries: dict[str, dict[str, Any] | None] = {part: stored.get(part) for part in split.split("+")}

    @staticmethod
    def split_names(folder: pathlib.Path) -> list[str]:
        """The splits of a prepared data set."""
        return list(_shards(folder))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example: `image` and `label` as encoded bytes, `id` as text.

        The image is an array if `pixels` says that images keep their channels and their bit depth.

        Raises:
          UserError: the file that holds the example is damaged or missing.
        """
        try:
            example = tf_example.parse(self._records[index])
            image = example["image"] if "image" in example else self._read_values(example)
            return {"image": image, "label": example["label"], "id": example["id"].decode()}
        except (RuntimeError, ValueError, KeyError) as error:
            # ArrayRecord raises RuntimeError where its checksums find flipped bytes. Past the end of a shortened file
            # it returns an empty record, which has no `image`.
            detail = "its file is cut short" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"example {index} of {self.name}/{self.split} cannot be read: {detail}; "
                f"remove {self.folder} and prepare the data set again"
            ) from None

    def _read_values(self, example: dict[str, Any]) -> np.ndarray:
        """The image of a record that keeps its channels and its bit depth; a view of the record's bytes."""
        return np.frombuffer(example["image/value"], self.pixels.dtype).reshape(example["image/shape"])

    def __repr__(self) -> str:
        return f"PreparedSource({self.name}/{self.split}, {len(self)} examples)"

    @property
    def is_all_ignored(self) -> bool:
        """True if every pixel of every mask is ignored. Unknown, and False, for data sets of older versions."""
        return all(stored is not None and not any(stored["class_pixels"]) for stored in self.summaries.values())

    def ids(self) -> list[str]:
        """The ids of all examples, in order."""
        return [self[i]["id"] for i in range(len(self))]

    def largest_size(self) -> tuple[int, int]:
        """The largest height and the largest width in the split. Reads the headers of all masks once."""
        if self._largest_size is None:
            examples = (self[i] for i in range(len(self)))
            sizes = [images.encoded_size(example["label"], example["id"]) for example in examples]
            self._largest_size = tuple(int(extent) for extent in np.max(sizes, axis=0))
        return self._largest_size


def write_dataset(name: str, raw: RawDataset, data_dir: pathlib.Path) -> pathlib.Path:
    """Writes all splits of a raw data set. The folder gets its name once everything is in it.

    If it is interrupted or fails after it has filled a file, complete files are kept, and the next call for the same
    data continues after them. Otherwise nothing is left.

    Returns:
      The prepared folder.

    Raises:
      UserError: an example is wrong, a split is empty or names an example twice, all masks are ignored everywhere,
        another process is preparing the data set, or the folder cannot be written.
    """
    _check_ids(name, raw)
    folder = prepared_folder(name, data_dir)
    scratch = folder.parent / "incomplete"
    for outdated in folder.parent.glob("incomplete.*"):  # left by an earlier version that was killed
        shutil.rmtree(outdated)
    created = not folder.parent.exists()
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with _locked(scratch, name):
            _start_or_continue(scratch, raw)
            try:
                _write_splits(name, raw, scratch, folder)
            finally:
                if not record_files.has_full_files(scratch / _VERSION):
                    shutil.rmtree(scratch)
                else:
                    logger.warning("complete files of %s are kept in %s; the same command continues", name, scratch)
    except OSError as error:
        raise from_os_error(error, f"cannot write {folder}") from error
    finally:
        if created and not folder.exists() and not scratch.exists():
            shutil.rmtree(folder.parent, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _locked(scratch: pathlib.Path, name: str) -> Iterator[None]:
    """Holds the lock of a preparation for the duration of the block."""
    with (scratch / "lock").open("a") as file:
        with contextlib.suppress(OSError):  # some network file systems cannot lock
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is preparing {name} in {scratch}; wait until it ends") from None
        yield


def _start_or_continue(scratch: pathlib.Path, raw: RawDataset) -> None:
    """Removes what an earlier preparation left if it was for other classes, or with other rules or libraries."""
    labels = raw.label_map and raw.label_map.to_json()
    plan = {
        "classes": [raw.label_set.class_names, raw.label_set.palette, labels, raw.rules],
        "versions": [importlib.metadata.version(package) for package in ("deeplab_jax", "pillow", "numpy")],
        "encoder": cv2.__version__,
    }
    plan = json.loads(json.dumps(plan))
    target, path = scratch / _VERSION, scratch / "plan.json"
    try:
        is_same = read_json(path, max_bytes=1 << 30) == plan
    except UserError:  # there is none
        is_same = False
    if not is_same or not record_files.has_full_files(target) or not record_files.can_continue(target):
        shutil.rmtree(target, ignore_errors=True)
    target.mkdir(exist_ok=True)
    write_json(path, plan)
    if record_files.has_full_files(target):
        logger.info("Continuing an interrupted preparation in %s", scratch)


def _write_splits(name: str, raw: RawDataset, scratch: pathlib.Path, folder: pathlib.Path) -> None:
    target = scratch / _VERSION
    summaries, splits, files = {}, [], {}
    for split, examples in raw.splits.items():
        paths, written, summaries[split] = record_files.write_split(target, split, raw.label_set, examples)
        files |= {path: _shard_name(name, split, i, len(paths)) for i, path in enumerate(paths)}
        splits.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(sum(shard.num_bytes for shard in written)),
                "shardLengths": [str(len(shard.examples)) for shard in written],
            }
        )
    _check_labels(name, raw.label_set, summaries)
    for manifest in target.glob("*.json"):
        manifest.unlink()
    for path, final in files.items():
        path.rename(target / final)
    _write_descriptions(target, name, raw, splits, summaries)
    target.rename(folder)


def _check_ids(name: str, raw: RawDataset) -> None:
    for split, examples in raw.splits.items():
        if not examples:
            raise UserError(f"split {split} of {name} is empty; check the list that names its images")
        example_id, count = Counter(example.id for example in examples).most_common(1)[0]
        if count > 1:
            raise UserError(f"split {split} of {name} lists {example_id} {count} times; list each image once")


def _check_labels(name: str, label_set: LabelSet, summaries: dict[str, SplitSummary]) -> None:
    """Rejects a data set without labels, and warns of splits and classes that have none."""
    if all(summary.is_all_ignored for summary in summaries.values()):
        raise UserError(f"every pixel of every mask of {name} is ignored ({IGNORE_LABEL}); masks contain class ids")
    for split, summary in summaries.items():
        if summary.is_all_ignored and split != UNLABELED:
            logger.warning(
                "every pixel of split %s of %s is ignored (%d); it cannot be trained on or evaluated",
                split,
                name,
                IGNORE_LABEL,
            )
    totals = np.sum([summary.class_pixels for summary in summaries.values()], axis=0)
    absent = [class_name for class_name, total in zip(label_set.class_names, totals, strict=True) if not total]
    if absent:
        more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
        logger.warning("no mask of %s has a pixel of: %s%s", name, ", ".join(absent[:_NAMED]), more)


class _Shard(NamedTuple):
    """A file of records, as `ArrayRecordDataSource` accepts it (`FileInstruction`), in the folder."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def _shard_name(name: str, split: str, index: int, count: int) -> str:
    return f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


def _shards(folder: pathlib.Path) -> dict[str, list[_Shard]]:
    """The files of each split, in the order in which they were written."""
    info = _read_description(folder, "dataset_info.json")
    shards = {}
    for split in info["splits"]:
        lengths = [int(length) for length in split["shardLengths"]]
        names = [_shard_name(info["name"], split["name"], i, len(lengths)) for i in range(len(lengths))]
        shards[split["name"]] = [_Shard(name, 0, length, length) for name, length in zip(names, lengths, strict=True)]
    return shards


def _read_description(folder: pathlib.Path, file: str) -> dict[str, Any]:
    try:
        return read_json(folder / file)
    except UserError as error:
        raise UserError(f"{error}; remove {folder} and prepare the data set again") from None


def _write_descriptions(
    folder: pathlib.Path,
    name: str,
    raw: RawDataset,
    splits: list[dict[str, Any]],
    summaries: dict[str, SplitSummary],
) -> None:
    """Writes the JSON files of a TFDS data set."""
    info = {
        "name": name,
        "version": _VERSION,
        "fileFormat": "array_record",
        "disableShuffling": True,
        "splits": splits,
    }
    pixels = _find_pixels(raw, summaries)
    metadata = {
        "class_names": raw.label_set.class_names,
        "palette": raw.label_set.palette,
        "splits": {split: summary.values() for split, summary in summaries.items()},
    }
    if pixels is not None:
        metadata["pixels"] = pixels.to_json()
    if raw.label_map is not None:
        metadata["label_map"] = raw.label_map.to_json()
    for file, values in zip(_DESCRIPTIONS, (info, _features(pixels), metadata), strict=True):
        (folder / f"{file}.json").write_text(json.dumps(values, indent=2))


def _find_pixels(raw: RawDataset, summaries: dict[str, SplitSummary]) -> PixelFormat | None:
    """The format of the images with the range and the statistics that are found in them; None for 8-bit RGB."""
    if raw.pixels is None:
        return None
    pixels = complete(raw.pixels, {split: summary.channels for split, summary in summaries.items()}, raw.value_range)
    logger.info("images have %s", pixels)
    return pixels
