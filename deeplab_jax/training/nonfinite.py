"""Losses that are NaN or infinite: steps that pass over them, and what is kept for whoever looks for the cause."""

import functools
import io
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.files import write_atomically
from deeplab_jax.parallel import processes
from deeplab_jax.training.state import TrainState

_MOST_IDS = 16  # that a message names; the saved batch has all


def passing_over(train_step: Callable) -> Callable:
    """A train step that leaves parameters, averages and statistics as they were where loss or gradient is not finite.

    `step`, `examples_seen` and the optimizer's counters go on, so that schedule and data keep their places. A finite
    step is the same to the bit.

    Args:
      train_step: of `deeplab_jax.training.step.make_train_step`.
    """

    @functools.wraps(train_step)
    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        new, report = train_step(state, batch)
        finite = jnp.isfinite(report["loss_sum"]) & jnp.isfinite(report["gradient_norm"])

        def choose(new_leaf, old_leaf):
            return jnp.where(finite, new_leaf, old_leaf) if jnp.issubdtype(new_leaf.dtype, jnp.floating) else new_leaf

        return jax.tree.map(choose, new, state), report

    return step


def is_finite(report: dict[str, Any]) -> bool:
    """Whether a step's loss and gradient norm are numbers; waits for the step."""
    return math.isfinite(report["loss_sum"]) and math.isfinite(report["gradient_norm"])


def describe(step: int, report: dict[str, Any], batch: dict[str, np.ndarray], path: pathlib.Path) -> str:
    """What a person wants to know about the step: its numbers, its examples, and where this process' batch is.

    All processes of a run call this together.
    """
    loss = float(report["loss_sum"]) / max(float(report["loss_count"]), 1)
    ids = [id for share in processes.gather(batch["id"].tolist()) for id in share]
    more = f" and {len(ids) - _MOST_IDS} more" if len(ids) > _MOST_IDS else ""
    return (
        f"step {step} is not finite: loss {loss:.4g}, gradient norm {float(report['gradient_norm']):.4g}, "
        f"learning rate {float(report['learning_rate']):.4g}; its examples: {', '.join(ids[:_MOST_IDS])}{more}; "
        f"its batch: {path}"
    )


def save_batch(folder: pathlib.Path, step: int, batch: dict[str, np.ndarray]) -> pathlib.Path:
    """Writes this process' share of a batch as `step_<step>.npz`, with an array for each of its fields.

    Raises:
      UserError: the disk is full.
    """
    share = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = folder / f"step_{step:08d}{share}.npz"
    content = io.BytesIO()
    np.savez_compressed(content, **batch)
    folder.mkdir(exist_ok=True)
    write_atomically(path, content.getvalue())
    return path
