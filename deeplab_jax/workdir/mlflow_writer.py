"""A run on an MLflow tracking server, or in a database of MLflow's."""

import json
import logging
import pathlib
import re
import time

import mlflow
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from deeplab_jax import config as config_lib
from deeplab_jax.workdir.tracker import Journal

logger = logging.getLogger(__name__)

# MLflow rejects longer parameters, and names of metrics with other characters.
_LONGEST_PARAMETER = 6000
_NOT_IN_NAMES = re.compile(r"[^\w\-.:/ ]")
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowWriter:
    """Writes to a run of MLflow; see `deeplab_jax.workdir.writers.MetricsWriter`.

    Args:
      experiment: name of the experiment, which is created if needed. MLFLOW_TRACKING_URI names the server.
      workdir: its name is that of the run.
      journal: what the run has sent.
    """

    replays = True

    def __init__(self, experiment: str, workdir: pathlib.Path, journal: Journal):
        self._journal = journal
        self._client = mlflow.MlflowClient()
        self._is_new = journal.run_id is None
        if self._is_new:
            found = self._client.get_experiment_by_name(experiment)
            experiment_id = self._client.create_experiment(experiment) if found is None else found.experiment_id
            journal.start(self._client.create_run(experiment_id, run_name=workdir.resolve().name).info.run_id)
        else:
            self._client.update_run(journal.run_id, status="RUNNING")
        logger.info("MLflow: run %s at %s", journal.run_id, mlflow.get_tracking_uri())

    def add_config(self, config: ConfigDict) -> None:
        """Stores the config as `config.json`, and the fields of a new run as its parameters, which never change."""
        self._client.log_text(self._journal.run_id, json.dumps(config_lib.to_saved(config), indent=1), "config.json")
        if self._is_new:
            fields = config_lib.result_fields(config)
            parameters = [
                mlflow.entities.Param(path, str(value)[:_LONGEST_PARAMETER]) for path, value in fields.items()
            ]
            for start in range(0, len(parameters), 100):  # MLflow takes no more at once
                self._client.log_batch(self._journal.run_id, params=parameters[start : start + 100])

    def add_scalars(self, group: str, values: dict[str, float], step: int) -> None:
        """Adds the numbers that the run does not have."""
        if not self._journal.is_new(group, step):
            return
        now = round(1000 * time.time())
        names = _legal_names([f"{group}/{name}" for name in values])
        metrics = [
            mlflow.entities.Metric(name, value, now, step) for name, value in zip(names, values.values(), strict=True)
        ]
        for start in range(0, len(metrics), 1000):  # MLflow takes no more at once
            self._client.log_batch(self._journal.run_id, metrics=metrics[start : start + 1000])
        self._journal.record(group, step)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds an image unless the run has it."""
        if self._journal.is_new(name, step):
            self._client.log_image(self._journal.run_id, Image.fromarray(image), f"{name}_{step}.png")
            self._journal.record(name, step)

    def close(self, status: str) -> None:
        """Sets how the run ended."""
        self._client.set_terminated(self._journal.run_id, _STATUS[status])


def _legal_names(names: list[str]) -> list[str]:
    """Returns a name that MLflow accepts for each name; no two are the same."""
    legal: list[str] = []
    for name in names:
        base = candidate = _NOT_IN_NAMES.sub("_", name)
        number = 2
        while candidate in legal:
            candidate = f"{base}_{number}"
            number += 1
        legal.append(candidate)
    return legal
