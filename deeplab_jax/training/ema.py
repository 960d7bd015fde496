"""Exponential moving averages of a network's variables, which generalize better than the last step's."""

import functools
from collections.abc import Callable

import jax
import optax

from deeplab_jax.training.state import TrainState


def averaging(train_step: Callable, decay: float) -> Callable:
    """A train step that also moves `ema_variables` towards the new ones: decay * average + (1 - decay) * new.

    Batch statistics too, averages though they are: averaged parameters lag behind, and with the newest statistics a
    network whose rate is still high predicts next to nothing.

    Args:
      train_step: of `deeplab_jax.training.step.make_train_step`.
      decay: a step, below 1; about 1 / (1 - decay) steps are averaged.
    """

    @functools.wraps(train_step)
    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        new, report = train_step(state, batch)
        averages = optax.incremental_update(new.variables, state.ema_variables, 1 - decay)
        return new.replace(ema_variables=averages), report

    return step
