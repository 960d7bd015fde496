"""Describes and saves the batch of a step whose loss or gradient is NaN or infinite."""

import io
import math
import pathlib
from typing import Any

import jax
import numpy as np

from deeplab_jax.files import write_atomically
from deeplab_jax.parallel import processes

_MAX_IDS = 16  # named in a message; the saved batch has all of them


def is_finite(report: dict[str, Any]) -> bool:
    """True if a step's loss and gradient norm are finite. Waits for the step."""
    return math.isfinite(report["loss_sum"]) and math.isfinite(report["gradient_norm"])


def describe(step: int, report: dict[str, Any], batch: dict[str, np.ndarray], path: pathlib.Path) -> str:
    """Describes the step: its loss, gradient norm and learning rate, its examples, and where the batch was saved.

    A collective operation: all processes of a run call it together.
    """
    loss = float(report["loss_sum"]) / max(float(report["loss_count"]), 1)
    names = [name for field in ("id", "unlabeled_id") if field in batch for name in batch[field].tolist()]
    ids = [id for share in processes.gather(names) for id in share]
    more = f" and {len(ids) - _MAX_IDS} more" if len(ids) > _MAX_IDS else ""
    return (
        f"step {step} is not finite: loss {loss:.4g}, gradient norm {float(report['gradient_norm']):.4g}, "
        f"learning rate {float(report['learning_rate']):.4g}; examples: {', '.join(ids[:_MAX_IDS])}{more}; "
        f"batch saved in {path}"
    )


def save_batch(folder: pathlib.Path, step: int, batch: dict[str, np.ndarray]) -> pathlib.Path:
    """Writes this process's share of a batch to `step_<step>.npz`, one array per field.

    Raises:
      UserError: the file cannot be written, for instance because the disk is full.
    """
    share = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = folder / f"step_{step:08d}{share}.npz"
    content = io.BytesIO()
    np.savez_compressed(content, **batch)
    folder.mkdir(exist_ok=True)
    write_atomically(path, content.getvalue())
    return path
