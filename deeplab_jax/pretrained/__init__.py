"""Starting a network from another one's parameters."""

import pathlib

from deeplab_jax import checkpoint
from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.merge import merge
from deeplab_jax.train_state import TrainState

__all__ = ["init_from", "merge"]


def init_from(state: TrainState, workdir: pathlib.Path) -> tuple[TrainState, str]:
    """A fresh state with the parameters and batch statistics of another run's newest checkpoint.

    The classifier is taken over only if it has the same classes; its size decides. Everything else has to fit.

    Args:
      state: as created.
      workdir: of the other run.

    Returns:
      The state, and a line that says what was taken and what was not.

    Raises:
      UserError: no checkpoint, or networks that differ in more than their classifier.
    """
    if not workdir.is_dir():
        raise UserError(f"train.init_from={workdir} does not exist; give the workdir of a training run")
    checkpoint.read_config(workdir)  # says so if it is no workdir
    with checkpoint.Checkpoints(workdir) as checkpoints:
        if checkpoints.latest_step is None:
            raise UserError(f"train.init_from={workdir} has no checkpoint")
        foreign = checkpoints.saved_variables()
    variables, report = merge(state.variables, foreign, reinitialise=("classifier",))
    return state.replace(**variables), f"Starting from {workdir}: {report}"
