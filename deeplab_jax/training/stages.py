"""Training in stages: each starts from the result of the one before."""

import logging
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.files import create_folder
from deeplab_jax.workdir import layout

logger = logging.getLogger(__name__)


def train_stages(
    config: ConfigDict, workdir: pathlib.Path, train_stage: Callable[[ConfigDict, pathlib.Path], dict[str, Any]]
) -> dict[str, Any]:
    """Trains the stages of a config one after another, each in a folder of the workdir.

    The first stage starts as `train.init_from` says, and each other stage from the checkpoint of the one before that
    its `checkpoint.use` chooses. A stage that sets `train.init_from` itself starts from there.

    Args:
      config: a valid config with stages.
      workdir: gets `config.json`, and a workdir for each stage.
      train_stage: trains, continues or skips one stage, given its whole config and its workdir.

    Returns:
      The result of the last stage.

    Raises:
      UserError: the workdir holds a run without stages or with others.
    """
    create_folder(workdir, "workdir")
    layout.write_stages(workdir, config)
    stages, result, previous = config_lib.stage_configs(config), {}, None
    for number, (name, stage) in enumerate(stages.items(), start=1):
        fields = config_lib.stage_fields(config, name)
        if previous is not None and "train.init_from" not in fields:
            stage.train.init_from = _start(workdir / name, workdir / previous)
        changes = ", ".join(f"{path}={value!r}" for path, value in fields.items())
        logger.info("Stage %s (%d of %d)%s", name, number, len(stages), f": {changes}" if changes else "")
        result = train_stage(stage, workdir / name)
        previous = name
    return result


def _start(folder: pathlib.Path, previous: pathlib.Path) -> str:
    """Returns `train.init_from` of a stage: the stage before, or what it has started with, which may have moved since.

    A relative path would depend on the folder that the command runs in.
    """
    if layout.checkpoint_steps(folder):
        return layout.read_config(folder).train.init_from
    return str(previous.absolute())
