"""The Grain pipeline of training: endless shuffled batches."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from deeplab_jax.data import images, transforms, workers
from deeplab_jax.data.sampling import check_classes, with_repeats
from deeplab_jax.errors import UserError

if TYPE_CHECKING:
    import grain

_THREADS = min(16, (os.cpu_count() or 1) + 1)  # decoding and resizing release the GIL
_MOST_UNREADABLE = 10  # examples to skip in a row; more of them are not an accident


def train_batches(
    source,
    data: ConfigDict,
    *,
    seed: int,
    examples_seen: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    pad_color: Sequence[int | float] = (0, 0, 0),
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
      pad_color: color around scaled images, a value per channel.

    Yields:
      `image` (batch, height, width, channels) in the dtype of the source, uint8 RGB by default; `label` uint8
      (batch, height, width); `id` (array of strings); `unreadable` (array of strings): the error of the example that
      this one replaces, empty for most.

    Raises:
      UserError: `data.copy_paste_classes` or `data.repeat_classes` has an unknown class; `data.transform` cannot be
        imported or fails; or a stored example is damaged, and `data.unreadable` is "raise" or many in a row are
        damaged.
    """
    check_classes(source, data, "copy_paste_classes")
    custom = None
    if data.transform:
        function = transforms.find_transform(data.transform)
        custom = transforms.CustomTransform(data.transform, function, source.label_set.num_classes)
    source = with_repeats(source, data, seed=stream_seed("train", seed))
    read = TrainExample(source, data.unreadable)
    transform = _Augment(read, data.copy_and_resolve_references(), tuple(pad_color), custom)
    dataset = positions(len(source)).seed(stream_seed("train", seed)).shuffle().repeat()
    dataset = dataset.map(read).random_map(transform)
    dataset = dataset[examples_seen:][process_index::process_count]
    dataset = dataset.batch(data.batch_size // process_count, drop_remainder=True)
    return stream(dataset, data.workers)


def decode_example(example: dict[str, Any]) -> dict[str, Any]:
    """Decodes an example of a source: arrays `image` (H, W, 3) and `label` (H, W) of uint8. Arrays stay as they are.

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


def positions(count: int) -> "grain.MapDataset":
    """Returns the positions 0 to count - 1."""
    # Slow to import, and prediction does not need it.
    import grain

    return grain.MapDataset.range(count)


def stream(dataset: "grain.MapDataset", num_workers: int) -> Iterator[Any]:
    """Iterates over a data set that is read in the background, by threads or by `num_workers` processes.

    Raises:
      UserError: a stored example is damaged, a worker process died, or there is no shared memory for workers.
    """
    import grain

    if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which only absl.app parses
        flags.FLAGS.mark_as_parsed()
    if num_workers == 0:
        cv2.setNumThreads(1)  # examples are read in parallel already
        examples = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=8)))
    else:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        examples = workers.iterate(dataset.to_iter_dataset(options), num_workers)
    with contextlib.closing(examples) as batches:
        try:
            yield from batches
        except UserError as error:  # Grain may append its traceback to the message
            raise UserError(str(error).partition("\n")[0]) from error


def stream_seed(name: str, seed: int) -> int:
    """The seed of a stream of examples: of its order and its augmentation."""
    # Grain seeds an example's generator with seed + position, so neighboring seeds would share shifted streams.
    return int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest()[:4], "big")


class TrainExample:
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
    read: TrainExample
    data: Any
    pad_color: tuple[int, ...]
    custom: transforms.CustomTransform | None

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        image, label = self._transform(example, rng)
        if self.data.copy_paste_classes and rng.random() < self.data.copy_paste_share:
            other = self._transform(self.read(int(rng.integers(len(self.read)))), rng)
            image, label = transforms.copy_paste(image, label, *other, classes=self.data.copy_paste_classes)
        return example | {"image": image, "label": label}

    def _transform(self, example, rng):
        image, label = example["image"], example["label"]
        if self.custom is not None:
            image, label = self.custom(image, label, rng, example=example["id"])
        return transforms.augment(image, label, rng, self.data, pad_color=self.pad_color)
