"""Exponential moving averages of the parameters, which generalise better than the last step's."""

import functools
from collections.abc import Callable

import jax
import optax

from deeplab_jax.train_state import TrainState


def averaging(train_step: Callable, decay: float) -> Callable:
    """A train step that also moves `ema_params` towards the new parameters: decay * average + (1 - decay) * new.

    Batch statistics are averages already, and are left as they are.

    Args:
      train_step: of `deeplab_jax.steps.make_train_step`.
      decay: a step, below 1; about 1 / (1 - decay) steps are averaged.
    """

    @functools.wraps(train_step)
    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        new, report = train_step(state, batch)
        averages = optax.incremental_update(new.params, state.ema_params, 1 - decay)
        return new.replace(ema_params=averages), report

    return step
