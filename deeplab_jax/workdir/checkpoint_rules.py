"""The rules and messages that checkpoints on a disk and in a bucket share."""

import pathlib
from typing import Any

from deeplab_jax.errors import UserError

#: In place of a step: every checkpoint is damaged.
NO_STEP = -1


class BestScore:
    """The part of a run's checkpoints that remembers its best evaluation."""

    _best: dict[str, Any] | None = None

    @property
    def best(self) -> dict[str, Any] | None:
        """`step` and `mean_iou` of the run's best evaluation. After a restart it is known once `restore` has run."""
        return self._best

    def record_score(self, step: int, mean_iou: float | None) -> bool:
        """Records the score at `step`. Returns True if it is the best so far; the best checkpoint is kept."""
        is_best = mean_iou is not None and (self._best is None or mean_iou > self._best["mean_iou"])
        if is_best:
            self._best = {"step": step, "mean_iou": mean_iou}
        return is_best


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
