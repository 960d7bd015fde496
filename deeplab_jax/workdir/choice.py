"""Which checkpoint of a workdir is read: the newest, the best, or that of a step."""

import pathlib

from deeplab_jax.errors import UserError
from deeplab_jax.workdir.layout import checkpoint_steps
from deeplab_jax.workdir.metrics_log import read_evaluations

#: The choices that have names. Another choice is the step of a checkpoint.
NEWEST, BEST = "newest", "best"


def choose_step(workdir: pathlib.Path, checkpoint: str) -> int | None:
    """Returns the step of the chosen checkpoint; None for the newest, which is only known once its files are checked.

    Args:
      workdir: the workdir of a run.
      checkpoint: "newest", "best" or a step.

    Raises:
      UserError: there is no such checkpoint, or no evaluation tells which is the best.
    """
    if checkpoint == NEWEST:
        return None
    steps = checkpoint_steps(workdir)
    if not steps:
        return None  # the reader of the checkpoints says that there are none yet
    if checkpoint == BEST:
        best = best_checkpoint(workdir)
        if best is None:
            raise UserError(f"no checkpoint in {workdir} was evaluated yet, so none is the best; use the newest")
        return best[0]
    if not checkpoint.isdecimal() or int(checkpoint) not in steps:
        raise UserError(
            f"{workdir} has no checkpoint {checkpoint!r}; choose newest, best, or one of {', '.join(map(str, steps))}"
        )
    return int(checkpoint)


def best_checkpoint(workdir: pathlib.Path) -> tuple[int, float] | None:
    """Returns the step and the mean IoU of the checkpoint with the best evaluation during training.

    The first of equal ones is the best. None if no checkpoint was evaluated.
    """
    saved = set(checkpoint_steps(workdir))
    evaluations = [scores for scores in read_evaluations(workdir) if scores["step"] in saved]
    best = max(evaluations, key=lambda scores: scores["mean_iou"], default=None)
    return None if best is None else (best["step"], best["mean_iou"])
