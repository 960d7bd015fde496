"""The Grain pipeline of images without labels: each in a weak and a strong view, for training with pseudo labels.

The teacher predicts the pseudo labels of the weak view, and the network learns them from the strong one (FixMatch,
arXiv 2001.07685). The views share rotation, scale, crop and flip, so pixels correspond; the strong view has other
colors and is blurred.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from deeplab_jax.config import unlabeled_batch_size
from deeplab_jax.data import transforms
from deeplab_jax.data.pipeline import TrainExample, positions, stream, stream_seed
from deeplab_jax.labels import IGNORE_LABEL

# Stands for a missing label until padding, which gets the ignore label, is told apart from it. Of 255 classes, the
# report leaves out the last.
_MISSING = IGNORE_LABEL - 1


def unlabeled_batches(
    source,
    config: ConfigDict,
    *,
    batches_seen: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    pad_color: Sequence[int | float] = (0, 0, 0),
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's batches of unlabeled images, without end.

    Like those of `train_batches`, they depend only on the seed and the position in the stream. With CutMix, two
    neighbors in the stream are a pair, which one process gets.

    Args:
      source: see `open_source`.
      config: a whole config with `unlabeled.split` set.
      batches_seen: number of batches that the run has consumed.
      process_index: index of this process.
      process_count: number of processes of the run.
      pad_color: color around scaled images, a value per channel.

    Yields:
      `unlabeled_weak` and `unlabeled_strong` (batch, height, width, channels) in the dtype of the source: the views;
      `unlabeled_exists` bool (batch, height, width), False where a view is padding; `unlabeled_label` uint8 of the same
      shape, the labels of the split with the ignore label where there are none, for the report alone;
      `unlabeled_box` int32 (batch, 4), see `transforms.random_cut_box`; `unlabeled_id` and `unlabeled_unreadable`, see
      `train_batches`.

    Raises:
      UserError: a stored example is damaged, and `data.unreadable` is "raise" or many in a row are damaged.
    """
    batch_size = unlabeled_batch_size(config)
    read = TrainExample(source, config.data.unreadable)
    views = _Views(_weak_fields(config.data), config.unlabeled.copy_and_resolve_references(), tuple(pad_color))
    dataset = positions(len(source)).seed(stream_seed("unlabeled", config.train.seed)).shuffle().repeat()
    dataset = dataset.map(read).random_map(views)
    dataset = dataset[batches_seen * batch_size :]
    if config.unlabeled.cut_mix:
        pairs = dataset.batch(2)[process_index::process_count]
        dataset = pairs.batch(batch_size // process_count // 2, drop_remainder=True).map(_flatten)
    else:
        dataset = dataset[process_index::process_count].batch(batch_size // process_count, drop_remainder=True)
    return stream(dataset, config.data.workers)


def add_unlabeled(
    batches: Iterator[dict[str, np.ndarray]], unlabeled: Iterator[dict[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the arrays of both streams together; `unreadable` lists the errors of both. Closes them at the end."""
    with contextlib.closing(batches), contextlib.closing(unlabeled):
        for batch, more in zip(batches, unlabeled, strict=True):
            errors = np.concatenate([batch["unreadable"], more.pop("unlabeled_unreadable")])
            yield batch | more | {"unreadable": errors}


def _weak_fields(data: ConfigDict) -> ConfigDict:
    """The transforms of the weak view: those of labeled images that neither change colors nor look at labels."""
    weak = data.copy_and_resolve_references()
    weak.update(photometric_distortion=False, random_blur=0.0, color_jitter=0.0, cat_max_ratio=1.0)
    return weak


@dataclasses.dataclass(frozen=True)
class _Views:
    """Makes the views of an example."""

    data: ConfigDict
    unlabeled: ConfigDict
    pad_color: tuple[int | float, ...]

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        label = np.where(example["label"] == IGNORE_LABEL, np.uint8(_MISSING), example["label"])
        weak, label = transforms.augment(example["image"], label, rng, self.data, pad_color=self.pad_color)
        return {
            "unlabeled_weak": weak,
            "unlabeled_strong": self._distort(weak, rng),
            "unlabeled_exists": label != IGNORE_LABEL,
            "unlabeled_label": _without(label, _MISSING),
            "unlabeled_box": transforms.random_cut_box(label.shape, rng, share=self.unlabeled.cut_mix),
            "unlabeled_id": example["id"],
            "unlabeled_unreadable": example["unreadable"],
        }

    def _distort(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.unlabeled.photometric_distortion:
            image = transforms.photometric_distortion(image, rng)
        if self.unlabeled.grayscale:
            image = transforms.random_grayscale(image, rng, share=self.unlabeled.grayscale)
        if self.unlabeled.blur:
            image = transforms.random_blur(image, rng, sigma=self.unlabeled.blur)
        return image


def _without(label: UInt8[np.ndarray, "height width"], value: int) -> UInt8[np.ndarray, "height width"]:
    return np.where(label == value, np.uint8(IGNORE_LABEL), label)


def _flatten(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joins the pairs of a batch."""
    return {name: values.reshape(-1, *values.shape[2:]) for name, values in batch.items()}
