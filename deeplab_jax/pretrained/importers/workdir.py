"""The network of a training run, as its newest checkpoint has it."""

import pathlib

from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.network import PretrainedNetwork
from deeplab_jax.workdir import layout


def load(path: pathlib.Path) -> PretrainedNetwork:
    """The network in a workdir, with the averaged parameters if the run kept them.

    Raises:
      UserError: it is no workdir, or has no checkpoint yet.
    """
    # Orbax takes a third of a second to import: only for networks that it has written.
    from deeplab_jax.workdir.checkpoint import Checkpoints

    config = layout.read_config(path)
    with Checkpoints(path, read_only=True) as checkpoints:
        if checkpoints.latest_step() is None:
            raise UserError(f"{path} has no checkpoint yet; let `deeplab-jax train` write one")
        variables = checkpoints.saved_variables()
    return PretrainedNetwork(
        config.model, variables, layout.read_labels(path), config.eval.protocol, protocol_for(config).input_size
    )
