"""Grain pipelines: endless shuffled training batches, and evaluation batches with every example exactly once."""

import contextlib
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from deeplab_jax.data import images, transforms
from deeplab_jax.data.sampling import RepeatedSource
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL

if TYPE_CHECKING:
    import grain

_THREADS = min(16, (os.cpu_count() or 1) + 1)  # decoding and resizing release the GIL
_MOST_UNREADABLE = 10  # examples to skip in a row; more of them are not an accident
_ROUND_TO = 32  # default canvases are multiples of it, plus 1: sizes of k * stride + 1 keep atrous features aligned


def pad_color(input_mean: Sequence[float]) -> tuple[int, ...]:
    """The padding color: RGB that normalizes to about zero (the mean pixel of DeepLabv3)."""
    return tuple(round(value) for value in input_mean)


def train_batches(
    source,
    data: ConfigDict,
    *,
    seed: int,
    examples_seen: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    pad_color: Sequence[int] = (0, 0, 0),
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process' training batches, without end.

    The order of the examples and their augmentation depend only on the seed and the position in the stream, not on the
    number of workers or processes. A resumed run continues at `examples_seen`.

    Args:
      source: see `open_source`.
      data: the `data` group of a config.
      seed: seed of shuffling and augmentation. Every epoch has another order.
      examples_seen: number of examples that all processes of the run have consumed.
      process_index: index of this process.
      process_count: number of processes of the run. Each takes every `process_count`-th example.
      pad_color: RGB color around scaled images.

    Yields:
      `image` uint8 (batch, height, width, 3); `label` uint8 (batch, height, width); `id` (array of strings);
      `unreadable` (array of strings): the error of the example that this one replaces, empty for most.

    Raises:
      UserError: `data.paste_classes` names an unknown class; or a stored example is damaged, and `data.unreadable` is
        "raise" or many in a row are damaged.
    """
    num_classes = source.label_set.num_classes
    if not all(0 <= label < num_classes for label in data.paste_classes):
        raise UserError(f"data.paste_classes={tuple(data.paste_classes)} must be ids from 0 to {num_classes - 1}")
    if data.repeat_threshold:
        source = RepeatedSource(source, data.repeat_threshold, seed=_stream_seed(seed), unreadable=data.unreadable)
    read = _TrainExample(source, data.unreadable)
    transform = _Augment(read, data.copy_and_resolve_references(), tuple(pad_color))
    dataset = _positions(len(source)).seed(_stream_seed(seed)).shuffle().repeat()
    dataset = dataset.map(read).random_map(transform)
    dataset = dataset[examples_seen:][process_index::process_count]
    dataset = dataset.batch(data.batch_size // process_count, drop_remainder=True)
    return _stream(dataset, data.workers)


def eval_batches(
    source,
    data: ConfigDict,
    evaluation: ConfigDict,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    pad_color: Sequence[int] = (0, 0, 0),
) -> Iterator[dict[str, Any]]:
    """Batches of this process' share of a split, in order, every example exactly once.

    All processes yield the same number of batches; what is missing in the last ones is filled with black images of
    void labels whose `valid` is False.

    Args:
      source: of `open_source`.
      data: the `data` group of a config.
      evaluation: the `eval` group of a config; its `protocol` says what is resized and what is padded.
      batch_size: of this process.
      process_index: this process.
      process_count: of the run.
      pad_color: RGB around padded images.

    Yields:
      `image` uint8 (batch, H, W, 3), `label` uint8 (batch, h, w) with void around each image's own pixels, `size`
      int32 (batch, 2): height and width of these at the top left, `valid` bool (batch,), `id` (a list).

    Raises:
      UserError: an image is larger than `eval.image_size`, or a stored example is damaged.
    """
    shape = _Shape.of(source, data, evaluation, tuple(pad_color))
    rounds = math.ceil(len(source) / (batch_size * process_count))
    padded = rounds * batch_size * process_count
    indices = _positions(padded)[process_index::process_count]
    dataset = indices.map(_EvalExample(source, shape)).batch(batch_size, drop_remainder=True, batch_fn=_collate)
    return _stream(dataset, data.workers)


def decode_example(example: dict[str, Any]) -> dict[str, Any]:
    """Decodes an example of a source: uint8 arrays `image` (H, W, 3) and `label` (H, W). Arrays stay as they are.

    Raises:
      UserError: a stored image or mask is damaged.
    """
    image, label = example["image"], example["label"]
    if isinstance(image, bytes):
        image = images.decode_image(image, example["id"])
    if isinstance(label, bytes):
        label = images.decode_mask(label, example["id"])
    return {"image": image, "label": label, "id": example["id"]}


def decode_examples(source, indices: Iterable[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images (H, W, 3) and labels (H, W) at some positions of a source, at their original sizes.

    Raises:
      UserError: a stored image or mask is damaged.
    """
    examples = [decode_example(source[int(index)]) for index in indices]
    return [(example["image"], example["label"]) for example in examples]


def _positions(count: int) -> "grain.MapDataset":
    # Slow to import, and prediction does not need it.
    import grain

    return grain.MapDataset.range(count)


def _stream(dataset: "grain.MapDataset", workers: int) -> Iterator[Any]:
    with contextlib.closing(iter(_parallel(dataset, workers))) as batches:
        try:
            yield from batches
        except UserError as error:  # Grain may append its traceback to the message
            raise UserError(str(error).partition("\n")[0]) from error
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):  # Grain has no exception type for a dead worker
                raise
            raise UserError(
                "a data worker process died (killed, or out of memory); run the same command again to continue, with "
                "a smaller --config.data.workers if memory is the problem"
            ) from error


def _parallel(dataset: "grain.MapDataset", workers: int) -> "grain.IterDataset":
    import grain

    if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which only absl.app parses
        flags.FLAGS.mark_as_parsed()
    if workers == 0:
        cv2.setNumThreads(1)  # examples are read in parallel already
        return dataset.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=8))
    # Workers take whole batches in turn, which keeps their order.
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)).mp_prefetch(options)


def _stream_seed(seed: int) -> int:
    # Grain seeds an example's generator with seed + position, so neighboring seeds would share shifted streams.
    return int.from_bytes(hashlib.sha256(f"train {seed}".encode()).digest()[:4], "big")


class _TrainExample:
    """Decodes the example at a position; with the policy "skip", the next readable one replaces a damaged one."""

    def __init__(self, source, policy: str):
        self._source, self._tries = source, 1 if policy == "raise" else _MOST_UNREADABLE

    def __len__(self) -> int:
        return len(self._source)

    def __call__(self, index: int) -> dict[str, Any]:
        unreadable = ""
        for trial in range(self._tries):
            try:
                # Depends on the position alone, so a resumed run makes the same replacements.
                example = decode_example(self._source[(int(index) + trial) % len(self._source)])
            except UserError as error:
                unreadable = unreadable or str(error)
            else:
                return example | {"unreadable": unreadable}
        also = f"; nor can the next {self._tries - 1} examples" if self._tries > 1 else ""
        raise UserError(f"{unreadable}{also}")


@dataclasses.dataclass(frozen=True)
class _Augment:
    read: _TrainExample
    data: Any
    pad_color: tuple[int, ...]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        image, label = self._transform(example, rng)
        if self.data.paste_classes and rng.random() < self.data.paste_share:
            other = self.read(int(rng.integers(len(self.read))))
            image, label = transforms.paste(image, label, *self._transform(other, rng), classes=self.data.paste_classes)
        return example | {"image": image, "label": label}

    def _transform(self, example, rng):
        return transforms.augment(example["image"], example["label"], rng, self.data, pad_color=self.pad_color)


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What an evaluation protocol makes of an image: the network's input size and the canvas it is scored on."""

    protocol: str
    image_size: tuple[int, int]
    canvas: tuple[int, int]
    pad_color: tuple[int, ...]
    antialias: bool

    @classmethod
    def of(cls, source, data: ConfigDict, evaluation: ConfigDict, pad_color: tuple[int, ...]) -> "_Shape":
        if evaluation.protocol == "guide":
            size = tuple(data.image_size)
            return cls("guide", size, size, pad_color, data.antialias)
        largest = source.largest_size()
        if evaluation.protocol == "squeeze":
            return cls("squeeze", tuple(data.image_size), largest, pad_color, data.antialias)
        if evaluation.image_size is None:
            size = tuple(math.ceil(extent / _ROUND_TO) * _ROUND_TO + 1 for extent in largest)
        else:
            size = tuple(evaluation.image_size)
        return cls("whole", size, size, pad_color, data.antialias)


class _EvalExample:
    """The example at a position of the split, shaped for the protocol; black and invalid beyond its end."""

    def __init__(self, source, shape: _Shape):
        self._source, self._shape = source, shape

    def __call__(self, index: int) -> dict[str, Any]:
        shape = self._shape
        if index >= len(self._source):
            image = np.zeros((*shape.image_size, 3), np.uint8)
            label_map = np.full(shape.canvas, IGNORE_LABEL, np.uint8)
            size = np.array(shape.canvas, np.int32)
            return {"image": image, "label": label_map, "size": size, "valid": np.False_, "id": ""}
        example = decode_example(self._source[int(index)])
        image, label_map = example["image"], example["label"]
        if shape.protocol == "guide":
            label_map = transforms.resize_label(label_map, shape.image_size)
        size = np.array(label_map.shape, np.int32)
        if shape.protocol == "whole":
            if any(had > most for had, most in zip(label_map.shape, shape.canvas, strict=True)):
                raise UserError(
                    f"image {example['id']} is {size[0]}x{size[1]} (height x width), larger than "
                    f"eval.image_size={shape.canvas}; raise it"
                )
            image = transforms.pad_to(image, shape.image_size, shape.pad_color)
        else:
            image = transforms.resize_image(image, shape.image_size, antialias=shape.antialias)
        label_map = transforms.pad_to(label_map, shape.canvas, IGNORE_LABEL)
        return {"image": image, "label": label_map, "size": size, "valid": np.True_, "id": example["id"]}


def _collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    batch = {name: np.stack([example[name] for example in examples]) for name in ("image", "label", "size", "valid")}
    return batch | {"id": [example["id"] for example in examples]}
