"""How long a training is, in steps, and one line that says what it will do."""

from typing import NamedTuple

from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.config import unlabeled_batch_size
from deeplab_jax.errors import UserError
from deeplab_jax.training.sources import Sources


class Durations(NamedTuple):
    """Numbers of steps: total, warm-up, between evaluations, checkpoints (None: only at the end) and log lines."""

    total: int
    warmup: int
    evaluate: int | None
    save: int | None
    log: int


def durations(config: ConfigDict, num_examples: int) -> Durations:
    """Converts the durations of a config to numbers of steps.

    Args:
      config: a whole config.
      num_examples: number of training examples.

    Raises:
      UserError: `train.duration` is not set or is 0, or a duration is not legal.
    """
    sizes = {"batch_size": config.data.batch_size, "num_examples": num_examples}
    total = config_lib.duration_steps(config.train.duration, field="train.duration", **sizes)
    if not total:
        raise UserError(
            "train.duration is not set; set it in the config file or with --config.train.duration='30000 steps'"
            if total is None
            else f"train.duration={config.train.duration!r} must be above 0"
        )
    warmup, evaluate, save = (
        config_lib.duration_steps(text, field=field, total_steps=total, **sizes)
        for field, text in (
            ("optimizer.warmup", config.optimizer.warmup),
            ("eval.every", config.eval.every),
            ("checkpoint.every", config.checkpoint.every),
        )
    )
    return Durations(total, warmup or 0, evaluate, save, config.log.every_steps)


def describe(config: ConfigDict, sources: Sources, steps: int) -> str:
    """Says in one line what is trained on what, and how long.

    Args:
      config: a whole config.
      sources: the splits of the run.
      steps: number of steps to take.
    """
    label_set, batch_size = sources.train.label_set, config.data.batch_size
    unlabeled = sources.unlabeled
    height, width = config.data.image_size
    return (
        f"Training {config.model.backbone} with the head {config.model.head} to find {label_set.num_classes} classes "
        f"({label_set.shown_names}): {steps} steps of {batch_size} crops of {height}x{width}, "
        f"{steps * batch_size / len(sources.train):.3g} passes over {len(sources.train)} images; "
        + (f"{unlabeled_batch_size(config)} of {len(unlabeled)} unlabeled images per step; " if unlabeled else "")
        + f"{len(sources.evaluate)} images to evaluate on"
    )


def is_due(step: int, every: int | None) -> bool:
    """True at every `every`-th step; never if it is None or 0."""
    return bool(every) and step % every == 0
