"""A checkpoint of a training run."""

import pathlib

from deeplab_jax.data import protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.network import PretrainedNetwork
from deeplab_jax.workdir import layout
from deeplab_jax.workdir.choice import choose_step


def load(path: pathlib.Path, checkpoint: str | None = None) -> PretrainedNetwork:
    """Reads the network of a workdir, with averaged parameters if the run has them.

    Args:
      path: the workdir.
      checkpoint: "newest", "best" or a step; default: the run's `checkpoint.use`.

    Raises:
      UserError: the folder is not a workdir, or has no checkpoint yet, or not the chosen one.
    """
    # importing Orbax takes a third of a second, so only workdirs pay for it
    from deeplab_jax.workdir.checkpoint import Checkpoints

    config = layout.read_config(path)
    step = choose_step(path, checkpoint or config.checkpoint.use)
    with Checkpoints(path, read_only=True, step=step) as checkpoints:
        if checkpoints.latest_step() is None:
            raise UserError(f"{path} has no checkpoint yet; wait until `deeplab-jax train` has written one")
        variables = checkpoints.saved_variables()
    label_set, image_size = layout.read_labels(path), protocol_for(config).saved_size
    return PretrainedNetwork(config.model, variables, label_set, config.eval.protocol, image_size)
