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

from deeplab_jax.data import images, transforms
from deeplab_jax.data.sampling import RepeatedSource
from deeplab_jax.errors import UserError

if TYPE_CHECKING:
    import grain

_THREADS = min(16, (os.cpu_count() or 1) + 1)  # decoding and resizing hold no lock of the interpreter
_MOST_UNREADABLE = 10  # examples in a row that are passed over: more of them are no accident


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
    """Endless batches of this process' examples.

    Which example comes when, and how it is transformed, is a pure function of the seed and the position in the
    stream: not of the number of workers or processes. So a run goes on at `examples_seen` anywhere.

    Args:
      source: of `open_source`.
      data: the `data` group of a config.
      seed: of shuffling and augmentation; each epoch is shuffled anew.
      examples_seen: examples, over all processes, that the run has consumed.
      process_index: this process.
      process_count: of the run; each takes every process_count-th example.
      pad_color: RGB around scaled images.

    Yields:
      `image` uint8 (batch, height, width, 3), `label` uint8 (batch, height, width), `id` (an array of text), and
      `unreadable` (an array of text): what was wrong with the example whose place this one takes, empty for most.

    Raises:
      UserError: `data.paste_classes` names a class that the data set lacks; or a stored example is damaged, and
        `data.unreadable` is `raise` or many in a row are.
    """
    num_classes = source.label_set.num_classes
    if not all(0 <= label < num_classes for label in data.paste_classes):
        raise UserError(f"data.paste_classes={tuple(data.paste_classes)} must be ids from 0 to {num_classes - 1}")
    if data.repeat_threshold:
        source = RepeatedSource(source, data.repeat_threshold, seed=_stream_seed(seed), unreadable=data.unreadable)
    read = _TrainExample(source, data.unreadable)
    transform = _Augment(read, data.copy_and_resolve_references(), tuple(pad_color))
    dataset = positions(len(source)).seed(_stream_seed(seed)).shuffle().repeat()
    dataset = dataset.map(read).random_map(transform)
    dataset = dataset[examples_seen:][process_index::process_count]
    dataset = dataset.batch(data.batch_size // process_count, drop_remainder=True)
    return stream(dataset, data.workers)


def decode_example(example: dict[str, Any]) -> dict[str, Any]:
    """A source's example with uint8 arrays `image` (H, W, 3) and `label` (H, W); generated ones have them already.

    Raises:
      UserError: a stored image or mask is damaged.
    """
    image, label_map = example["image"], example["label"]
    if isinstance(image, bytes):
        image = images.decode_image(image, example["id"])
    if isinstance(label_map, bytes):
        label_map = images.decode_label_map(label_map, example["id"])
    return {"image": image, "label": label_map, "id": example["id"]}


def decoded(source, indices: Iterable[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images (H, W, 3) and label maps (H, W) at these positions of a source, at their own sizes.

    Raises:
      UserError: a stored image or mask is damaged.
    """
    examples = [decode_example(source[int(index)]) for index in indices]
    return [(example["image"], example["label"]) for example in examples]


def positions(count: int) -> "grain.MapDataset":
    """Returns the positions 0 to count - 1."""
    # Grain takes a sixth of a second to import: who predicts does without it.
    import grain

    return grain.MapDataset.range(count)


def stream(dataset: "grain.MapDataset", workers: int) -> Iterator[Any]:
    """Iterates over a data set that is read in the background, by threads or by `workers` processes.

    Raises:
      UserError: a stored example is damaged, or a worker process died.
    """
    with contextlib.closing(iter(_parallel(dataset, workers))) as batches:
        try:
            yield from batches
        except UserError as error:  # to which Grain may add lines about its traceback
            raise UserError(str(error).partition("\n")[0]) from error
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):  # Grain has no kind of its own for a dead worker
                raise
            raise UserError(
                "a data worker process died (killed, or out of memory); run the same command again to continue, with "
                "a smaller --config.data.workers if memory is short"
            ) from error


def _parallel(dataset: "grain.MapDataset", workers: int) -> "grain.IterDataset":
    import grain

    if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which programs without absl.app do not parse
        flags.FLAGS.mark_as_parsed()
    if workers == 0:
        cv2.setNumThreads(1)  # examples are read side by side already: threads inside one would take their cores
        return dataset.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=8))
    # Workers take whole batches in turn, which changes nothing about their order.
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)).mp_prefetch(options)


def _stream_seed(seed: int) -> int:
    # Grain derives an example's generator from seed + position: neighboring seeds would share shifted streams.
    return int.from_bytes(hashlib.sha256(f"train {seed}".encode()).digest()[:4], "big")


class _TrainExample:
    """The decoded example at a position of the source, or with the policy `skip` the next that can be read."""

    def __init__(self, source, policy: str):
        self._source, self._tries = source, 1 if policy == "raise" else _MOST_UNREADABLE

    def __len__(self) -> int:
        return len(self._source)

    def __call__(self, index: int) -> dict[str, Any]:
        unreadable = ""
        for trial in range(self._tries):
            try:
                # A function of the position alone: a run that continues replaces the same ones by the same ones.
                example = decode_example(self._source[(int(index) + trial) % len(self._source)])
            except UserError as error:
                unreadable = unreadable or str(error)
            else:
                return example | {"unreadable": unreadable}
        also = f"; neither can the {self._tries - 1} after it" if self._tries > 1 else ""
        raise UserError(f"{unreadable}{also}")


@dataclasses.dataclass(frozen=True)
class _Augment:
    read: _TrainExample
    data: Any
    pad_color: tuple[int, ...]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        image, label_map = self._augmented(example, rng)
        if self.data.paste_classes and rng.random() < self.data.paste_share:
            other = self.read(int(rng.integers(len(self.read))))
            image, label_map = transforms.paste(
                image, label_map, *self._augmented(other, rng), classes=self.data.paste_classes
            )
        return example | {"image": image, "label": label_map}

    def _augmented(self, example, rng):
        return transforms.augment(example["image"], example["label"], rng, self.data, pad_color=self.pad_color)
