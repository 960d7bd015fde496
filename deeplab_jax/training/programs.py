"""Compiled programs that the runs of one process share."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.evaluation.evaluator import jit_step
from deeplab_jax.labels import LabelSet
from deeplab_jax.training.step import TrainProgram, build_program

logger = logging.getLogger(__name__)

# Groups and fields that the compiled train step does not contain, since the loop around it reads them or the step takes
# their values as inputs. Which inputs there are is compared separately.
_LOOP_FIELDS = (
    "checkpoint", "distributed", "log", "stages",
    "data.data_dir", "data.workers", "data.train_split", "data.eval_split", "data.num_examples", "data.unreadable",
    "train.duration", "train.patience", "train.seed", "train.init_from", "train.precise_norm_batches",
    "eval.every", "eval.before_training",
    "unlabeled.split", "unlabeled.photometric_distortion", "unlabeled.grayscale", "unlabeled.blur",
)  # fmt: skip
_INPUT_FIELDS = (
    "optimizer.learning_rate", "optimizer.poly_power", "optimizer.milestones", "optimizer.milestone_factor",
    "optimizer.warmup", "optimizer.warmup_learning_rate", "optimizer.momentum", "optimizer.clip_norm",
    "optimizer.weight_decay", "optimizer.learning_rate_multipliers", "optimizer.bias_multiplier",
    "loss.auxiliary_weight", "train.ema_decay", "unlabeled.threshold", "unlabeled.weight",
)  # fmt: skip


class Programs:
    """Builds the programs of runs. Runs with equal programs share the compiled ones."""

    def __init__(self) -> None:
        self._train: dict[str, TrainProgram] = {}
        self._evaluate: dict[str, Callable] = {}

    def train_program(
        self, config: ConfigDict, num_classes: int, mesh: Mesh, *, image_dtype: str, **steps: int
    ) -> TrainProgram:
        """Does what `build_program` does, and logs whether the step has been compiled for an earlier run.

        The arguments are those of `build_program`.
        """
        program = build_program(config, num_classes, mesh, image_dtype=image_dtype, **steps)
        inputs = str(jax.tree.structure(program.hyperparams))
        key = _key(config, (*_LOOP_FIELDS, *_INPUT_FIELDS), num_classes, str(mesh), image_dtype, inputs)
        if key in self._train:
            logger.info("This run reuses the train step that an earlier run has compiled")
            return program.with_functions_of(self._train[key])
        logger.info("This run compiles a new train step")
        self._train[key] = program
        return program

    def eval_step(self, config: ConfigDict, model: nn.Module, mesh: Mesh, label_set: LabelSet) -> Callable:
        """Returns the step of `deeplab_jax.evaluation.evaluator.jit_step` with the same arguments."""
        key = _key(config, (*_LOOP_FIELDS, "optimizer", "train", "unlabeled"), str(model), str(mesh), str(label_set))
        if key not in self._evaluate:
            self._evaluate[key] = jit_step(config, model, mesh, label_set)
        return self._evaluate[key]


def _key(config: ConfigDict, without: Sequence[str], *others: Any) -> str:
    """Returns a text that two configs share if they differ in some groups and fields only."""
    values = config_lib.to_dict(config)
    for path in without:
        group, _, field = path.partition(".")
        if field:
            del values[group][field]
        else:
            values.pop(group, None)
    return json.dumps([values, others], sort_keys=True)
