"""A run on Weights & Biases."""

import logging
import pathlib
import uuid

import numpy as np
import wandb
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.storage import BucketPath
from deeplab_jax.storage.local_copies import cache_folder
from deeplab_jax.workdir.tracker import Journal

logger = logging.getLogger(__name__)


class WandbWriter:
    """Writes to a run of Weights & Biases; see `deeplab_jax.workdir.writers.MetricsWriter`.

    The steps of the run are values of their own, named `step`, and the axis of all charts: Weights & Biases refuses
    values at a step of its own that it has passed.

    Args:
      project: name of the project. WANDB_ENTITY, WANDB_MODE and other variables of the package hold.
      workdir: gets the folder `wandb`, which is in the cache folder if the workdir is in a bucket. Its name is that of
        the run.
      journal: what the run has sent.
    """

    replays = True

    def __init__(self, project: str, workdir: pathlib.Path, journal: Journal):
        self._journal = journal
        run_id = journal.run_id or uuid.uuid4().hex[:12]
        folder = cache_folder() if isinstance(workdir, BucketPath) else workdir
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project,
            id=run_id,
            resume="allow",
            name=workdir.resolve().name,
            dir=folder,
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        self._run.define_metric("*", step_metric="step")
        if journal.run_id is None:
            journal.start(run_id)
        where = f"kept in {folder / 'wandb'}" if self._run.offline else f"at {self._run.url}"
        logger.info("Weights & Biases: run %s, %s", run_id, where)

    def add_config(self, config: ConfigDict) -> None:
        """Stores the config with the run."""
        self._run.config.update(config_lib.to_dict(config), allow_val_change=True)

    def add_scalars(self, group: str, values: dict[str, float], step: int) -> None:
        """Adds the numbers that the run does not have."""
        if self._journal.is_new(group, step):
            self._run.log({"step": step} | {f"{group}/{name}": value for name, value in values.items()})
            self._journal.record(group, step)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds an image unless the run has it."""
        if self._journal.is_new(name, step):
            self._run.log({"step": step, name: wandb.Image(image)})
            self._journal.record(name, step)

    def close(self, status: str) -> None:
        """Sends what is still to be sent."""
        self._run.finish(exit_code=0 if status == "finished" else 1)
