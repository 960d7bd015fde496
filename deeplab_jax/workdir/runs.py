"""The runs below a folder: how far each is, its scores, and where their configs differ."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.errors import UserError
from deeplab_jax.files import read_json
from deeplab_jax.workdir import layout
from deeplab_jax.workdir.metrics_log import read_evaluations, read_metrics

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
      name: path of its workdir below the folder.
      state: `running`, `finished`, or `stopped` if it can be continued.
      step: the last step it reported.
      total_steps: the step that it ends at.
      best: the scores of its best evaluation during training by mean IoU, with `step`; None if it has not evaluated.
      last: the scores of its last evaluation, with `step`; None if it has not evaluated.
      config: its config.
    """

    name: str
    state: Literal["running", "finished", "stopped"]
    step: int
    total_steps: int
    best: dict[str, Any] | None
    last: dict[str, Any] | None
    config: ConfigDict


def list_runs(folder: pathlib.Path) -> list[Run]:
    """Finds the workdirs below a folder, the best mean IoU first. Damaged ones are logged and left out.

    Raises:
      UserError: there is none.
    """
    runs = []
    for workdir in sorted(layout.find_workdirs(folder)):
        try:
            runs.append(_read(workdir, workdir.relative_to(folder).as_posix()))
        except UserError as error:
            logger.warning("%s", error)
    if not runs:
        raise UserError(f"{folder} has no runs; `deeplab-jax train --workdir {folder / 'NAME'}` starts one")
    return sorted(runs, key=lambda run: -1.0 if run.best is None else run.best["mean_iou"], reverse=True)


def differing_fields(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the config fields that differ between runs, such as `optimizer.learning_rate`: the value of each run."""
    fields = [config_lib.result_fields(run.config) for run in runs]
    columns = {path: [values[path] for values in fields] for path in fields[0]}
    return {path: values for path, values in columns.items() if any(value != values[0] for value in values)}


def _read(workdir: pathlib.Path, name: str) -> Run:
    config, evaluations = layout.read_config(workdir), read_evaluations(workdir)
    step = max((line["step"] for line in read_metrics(workdir)), default=0)
    total = _total_steps(workdir, config)
    best = max(evaluations, key=lambda scores: scores["mean_iou"], default=None)
    last = evaluations[-1] if evaluations else None
    if layout.is_locked(workdir):
        state = "running"
    else:
        is_last = last is not None and last["step"] >= total
        state = "finished" if is_last or _ran_out_of_patience(config, evaluations) else "stopped"
    return Run(name, state, step, total, best, last, config)


def _ran_out_of_patience(config: ConfigDict, evaluations: list[dict[str, Any]]) -> bool:
    """Whether `train.patience` ended the run. The score before the first step does not count."""
    scores = [evaluation["mean_iou"] for evaluation in evaluations if evaluation["step"]]
    if config.train.patience is None or not scores:
        return False
    return len(scores) - 1 - scores.index(max(scores)) >= config.train.patience


def _total_steps(workdir: pathlib.Path, config: ConfigDict) -> int:
    path = workdir / layout.DATA_FILE
    try:
        num_examples = sum(split["examples"] for split in read_json(path)["train"]["splits"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error!r}; restore it from a copy") from None
    return config_lib.duration_steps(
        config.train.duration,
        field="train.duration",
        batch_size=config.data.batch_size,
        num_examples=num_examples,
    )
