"""The splits that a training reads: labeled images, images without labels, and those to evaluate on."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from deeplab_jax import data
from deeplab_jax.data.eval_pipeline import check_labels
from deeplab_jax.data.unlabeled import add_unlabeled, unlabeled_batches
from deeplab_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Sources:
    """The splits of a run.

    Attributes:
      train: `data.train_split`.
      evaluate: `data.eval_split`.
      unlabeled: `unlabeled.split`; None if it is not set. It may have labels, which are used for reports alone.
    """

    train: data.Source
    evaluate: data.Source
    unlabeled: data.Source | None

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Returns `deeplab_jax.data.fingerprint` of each split by the name of its attribute."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: data.fingerprint(source) for name, source in named.items() if source is not None}

    def train_batches(self, config: ConfigDict, state: TrainState) -> Iterator[dict[str, Any]]:
        """Returns the batches that follow a state. They depend only on the seed and on the number of examples seen."""
        seen = int(state.examples_seen)
        options = {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "pad_color": data.pad_color(config.model),
        }
        batches = data.train_batches(self.train, config.data, seed=config.train.seed, examples_seen=seen, **options)
        if self.unlabeled is None:
            return batches
        batches_seen = seen // config.data.batch_size
        return add_unlabeled(batches, unlabeled_batches(self.unlabeled, config, batches_seen=batches_seen, **options))


def open_sources(config: ConfigDict) -> tuple[ConfigDict, Sources]:
    """Opens the splits of a run, and checks that those that need labels have some.

    Returns:
      The config with the channels and the values of the data set, see `data.fit_model`; and the splits.

    Raises:
      UserError: a split does not exist, has no labels, or does not fit the config.
    """
    train = data.open_split(config, config.data.train_split)
    evaluate = data.open_split(config, config.data.eval_split)
    unlabeled = config.unlabeled.split and data.open_split(config, config.unlabeled.split, needs_labels=False)
    if config.loss.teacher is None:
        check_labels(train)
    if config.eval.ignored_pixels == "exclude":
        check_labels(evaluate)
    pixels = data.pixels_of(train)
    data.check_augmentation(config, pixels, train.name)
    data.check_display(config.data, pixels)
    if not pixels.is_rgb:
        config = config.copy_and_resolve_references()
        data.fit_model(config.model, pixels, train.name)
    for source in (train, evaluate):
        data.check_model(config.model, data.pixels_of(source), source.name)
    return config, Sources(train, evaluate, unlabeled)
