"""Writing the records of a split to files, and continuing where an interrupted preparation stopped.

A file that is complete has a manifest next to it: the examples in it, with digests of the files that they come from. If
the preparation is started again and these files are the same, the file is kept. Examples are read, checked and encoded
by `process_pool`; the records are in the order of the examples and do not depend on the number of processes.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from deeplab_jax import progress
from deeplab_jax.data import images, process_pool, tf_example
from deeplab_jax.data.channel_statistics import ChannelStatistics
from deeplab_jax.data.dataset import RawExample
from deeplab_jax.data.split_summary import SplitSummary
from deeplab_jax.errors import UserError
from deeplab_jax.files import file_digest, read_json, write_json
from deeplab_jax.labels import LabelSet

SHARD_BYTES = 256 << 20  # a file that reaches this size is closed and the next one begins

_NAME = re.compile(r".+\.\d+(\.json)?")


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """An example that was read and checked.

    Attributes:
      record: its record.
      source: digest of the files that it comes from, and of what else decides about the record.
      content: digest of the file of its image and of its label.
      pixels: number of pixels of each label.
      values: statistics of the image's channels; None for 8-bit RGB.
    """

    record: bytes
    source: str
    content: str
    pixels: Int64[np.ndarray, " 256"]
    values: ChannelStatistics | None


@dataclasses.dataclass
class _Shard:
    """A complete file: its number of bytes, id, source and content of each example, pixels per label, and values."""

    num_bytes: int
    examples: list[tuple[str, str, str]]
    pixels: list[int]
    values: ChannelStatistics | None = None


def write_split(
    folder: pathlib.Path, split: str, label_set: LabelSet, examples: Sequence[RawExample]
) -> tuple[list[pathlib.Path], list[_Shard], SplitSummary]:
    """Writes the records of a split, after those that are there already.

    Args:
      folder: where to write. The files are named `{split}.0`, `{split}.1` and so on.
      split: name of the split.
      label_set: the classes.
      examples: the examples of the split.

    Returns:
      The files, what is in each, and the summary of the split.

    Raises:
      UserError: an example is wrong. Complete files stay.
    """
    shards = _find_complete(folder, split, examples)
    _remove_others(folder, split, len(shards))
    done = sum(len(shard.examples) for shard in shards)
    prepare = functools.partial(_prepare, label_set)
    with progress.bar(f"prepare {split}", len(examples), completed=done) as bar:
        results = process_pool.map_in_order(prepare, examples[done:])
        while done < len(examples):
            shards.append(_write_shard(folder, split, len(shards), examples[done:], results, bar))
            done += len(shards[-1].examples)
    summary = SplitSummary(label_set.num_classes)
    for shard in shards:
        contents = [(example_id, content) for example_id, _, content in shard.examples]
        summary.add(contents, np.array(shard.pixels), shard.values)
    return [folder / f"{split}.{i}" for i in range(len(shards))], shards, summary


def has_full_files(folder: pathlib.Path) -> bool:
    """Whether a file was filled, so that keeping what is complete saves work."""
    found = (_read_manifest(path) for path in folder.glob("*.json"))
    return any(shard is not None and shard.num_bytes >= SHARD_BYTES for shard in found)


def can_continue(folder: pathlib.Path) -> bool:
    """Whether a folder contains only what `write_split` writes: files do not have their final names yet."""
    return all(_NAME.fullmatch(path.name) for path in folder.iterdir())


def _write_shard(folder: pathlib.Path, split: str, index: int, examples, results, bar: progress.Bar) -> _Shard:
    from array_record.python.array_record_module import ArrayRecordWriter

    shard, pixels, values = _Shard(0, [], []), np.zeros(256, np.int64), []
    path = folder / f"{split}.{index}"
    writer = None
    try:
        for example, found in zip(examples, results, strict=False):
            if writer is None:
                # One record per group, so that records are read in any order without decompressing their neighbors.
                writer = ArrayRecordWriter(str(path), "group_size:1")
            writer.write(found.record)
            shard.examples.append((example.id, found.source, found.content))
            shard.num_bytes += len(found.record)
            pixels += found.pixels
            values += [] if found.values is None else [found.values]
            bar.advance()
            if shard.num_bytes >= SHARD_BYTES:
                break
    finally:
        if writer is not None:
            writer.close()
    shard.pixels = pixels.tolist()
    shard.values = ChannelStatistics.merge(values) if values else None
    manifest = dataclasses.asdict(shard) | {"file_size": path.stat().st_size}
    write_json(_manifest(path), manifest)
    return shard


def _prepare(label_set: LabelSet, example: RawExample) -> _Prepared:
    image, label = example.read(label_set)
    statistics = None
    features = {"label": images.encode_mask(label), "id": example.id.encode()}
    if isinstance(image, bytes):
        features |= {"image": image}
    else:  # as TFDS stores a tensor whose height and width are not known
        statistics = ChannelStatistics.of(image)
        features |= {"image/shape": image.shape, "image/value": image.tobytes()}
    record = tf_example.serialize(features)
    # A large file is not read once per tile.
    digest = file_digest(example.image) if example.tile is None else _digest(image)
    content = hashlib.sha256(f"{digest} {label.shape}".encode())
    content.update(np.ascontiguousarray(label))
    pixels = np.bincount(label.ravel(), minlength=256)
    return _Prepared(record, _source(example), content.hexdigest(), pixels.astype(np.int64), statistics)


def _source(example: RawExample) -> str:
    """The digest of everything that a record depends on; empty if a file is missing."""
    try:
        files = (example.image, *example.label_files)
        digests = [_version(path) if example.tile else file_digest(path) for path in files]
    except OSError:
        return ""
    # The range of images that keep their bit depth does not change what is stored.
    rule = example.value_range if example.pixels is None else [example.pixels.channels, example.pixels.dtype]
    return hashlib.sha256(json.dumps([example.id, rule, example.tile, *digests]).encode()).hexdigest()


def _digest(image: bytes | np.ndarray) -> str:
    return hashlib.sha256(image).hexdigest()


def _version(path: pathlib.Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _find_complete(folder: pathlib.Path, split: str, examples: Sequence[RawExample]) -> list[_Shard]:
    """The files whose examples are the first ones of the split, and whose sources are unchanged."""
    found = []
    while (path := _manifest(folder / f"{split}.{len(found)}")).is_file():
        shard = _read_manifest(path)
        if shard is None:
            break
        found.append(shard)
    stored = [entry for shard in found for entry in shard.examples]
    if [example_id for example_id, _, _ in stored] != [example.id for example in examples[: len(stored)]]:
        return []
    kept = []
    sources = process_pool.map_in_order(_source, examples[: len(stored)])
    for shard in found:
        same = [source == next(sources) != "" for _, source, _ in shard.examples]
        if not all(same):
            break
        kept.append(shard)
    return kept


def _read_manifest(path: pathlib.Path) -> _Shard | None:
    """The manifest of a complete file; None if it is damaged, or the file does not have its size."""
    try:
        values: dict[str, Any] = read_json(path, max_bytes=1 << 30)
        size = values.pop("file_size")
        examples = [(str(i), str(s), str(c)) for i, s, c in values.pop("examples")]
        statistics = values.pop("values", None)
        statistics = statistics and ChannelStatistics.from_json(statistics)
        shard = _Shard(examples=examples, values=statistics, **values)
        return shard if path.with_suffix("").stat().st_size == size and len(shard.pixels) == 256 else None
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None


def _remove_others(folder: pathlib.Path, split: str, count: int) -> None:
    """Removes files that are incomplete or outdated."""
    kept = {name for i in range(count) for name in (f"{split}.{i}", f"{split}.{i}.json")}
    for path in folder.glob(f"{split}.*"):
        if path.name not in kept and re.fullmatch(r"\d+(\.json)?", path.name.removeprefix(f"{split}.")):
            path.unlink()


def _manifest(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".json")
