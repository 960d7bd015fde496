"""Compiled programs that the runs of one process share."""

import logging
from collections.abc import Callable

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deeplab_jax.evaluation.evaluator import jit_step
from deeplab_jax.labels import LabelSet
from deeplab_jax.training.program_key import eval_key, train_key
from deeplab_jax.training.step import TrainProgram, build_program

logger = logging.getLogger(__name__)


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
        key = train_key(config, num_classes, str(mesh), image_dtype, inputs)
        if key in self._train:
            logger.info("This run reuses the train step that an earlier run has compiled")
            return program.with_functions_of(self._train[key])
        logger.info("This run compiles a new train step")
        self._train[key] = program
        return program

    def eval_step(self, config: ConfigDict, model: nn.Module, mesh: Mesh, label_set: LabelSet) -> Callable:
        """Returns the step of `deeplab_jax.evaluation.evaluator.jit_step` with the same arguments."""
        key = eval_key(config, str(model), str(mesh), str(label_set))
        if key not in self._evaluate:
            self._evaluate[key] = jit_step(config, model, mesh, label_set)
        return self._evaluate[key]
