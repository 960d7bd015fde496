"""Which checkpoint of a workdir is read: the newest, the best, or that of a step."""

import json
import pathlib

from deeplab_jax.errors import UserError
from deeplab_jax.workdir.layout import checkpoint_steps
from deeplab_jax.workdir.metrics_log import METRICS_FILE

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
    path, saved = workdir / METRICS_FILE, set(checkpoint_steps(workdir))
    best = None
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            step, score = values["step"], values["eval"]["mean_iou"]
        except (ValueError, TypeError, KeyError, RecursionError):  # training metrics, or cut short by a crash
            continue
        if step in saved and score is not None and (best is None or score > best[1]):
            best = step, score
    return best
