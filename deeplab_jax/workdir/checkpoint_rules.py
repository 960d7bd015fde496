"""The rules and messages that checkpoints on a disk and in a bucket share."""

import pathlib
from typing import Any

from deeplab_jax.errors import UserError

#: In place of a step: every checkpoint is damaged.
NO_STEP = -1


def is_better(mean_iou: float | None, best: dict[str, Any] | None) -> bool:
    """Returns True if a score is higher than the best one so far, see `Checkpoints.best`."""
    return mean_iou is not None and (best is None or mean_iou > best["mean_iou"])


def damaged_error(folder: pathlib.Path, step: int | None) -> UserError:
    """Returns the error for damaged checkpoints: that of a step, or all."""
    which = "every checkpoint" if step is None else f"checkpoint {step}"
    return UserError(f"{which} in {folder} is damaged; restore the folder from a copy, or choose another --workdir")


def vanishing_error(folder: pathlib.Path) -> UserError:
    """Returns the error of a reader that never finds a checkpoint that a training does not delete."""
    return UserError(
        f"the checkpoints in {folder} are replaced faster than they can be read; try again, or let the training save "
        "less often (checkpoint.every)"
    )
