"""Sweeps: a training for each combination of some fields' values, one after another in one process."""

import collections
import contextlib
import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.errors import UserError, is_out_of_memory
from deeplab_jax.files import open_path, readable_name
from deeplab_jax.parallel.preemption import Preemption
from deeplab_jax.training import loop
from deeplab_jax.training.checks import check_training
from deeplab_jax.training.programs import Programs
from deeplab_jax.workdir import layout

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """The outcome of a run of a sweep.

    Attributes:
      name: the name of its workdir, such as `learning_rate=0.01`.
      scores: the contents of its `metrics.json`; None if it failed.
      error: why it failed, in one line; None if it finished.
    """

    name: str
    scores: dict[str, Any] | None
    error: str | None = None


def plan_runs(config: ConfigDict, grid: Mapping[str, Sequence[Any]]) -> dict[str, ConfigDict]:
    """Returns the config of each run of a sweep by its name, and checks them all.

    Args:
      config: the config that the runs share.
      grid: the values of each field that differs, by path, such as `{"optimizer.learning_rate": [0.01, 0.02]}`. There
        is a run for each combination, and the values of the last field change fastest.

    Raises:
      UserError: a field does not exist, a value has another type or is not legal, or two runs are the same.
    """
    counts = collections.Counter(path.rpartition(".")[2] for path in grid)
    names = {path: path.rpartition(".")[2] for path in grid}
    names = {path: name if counts[name] == 1 else path for path, name in names.items()}
    runs: dict[str, ConfigDict] = {}
    for values in itertools.product(*grid.values()):
        run = config.copy_and_resolve_references()
        for path, value in zip(grid, values, strict=True):
            config_lib.add_stage_field(run, path)
            config_lib.set_field(run, path, value)
        # The fields' own values: 1 and 1.0 are the same learning rate.
        texts = (f"{names[path]}={_value_text(config_lib.get_field(run, path))}" for path in grid)
        name = readable_name(",".join(texts))
        if name in runs:
            raise UserError(f"the grid has the run {name} twice; remove the repeated value")
        try:
            config_lib.validate(run)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        runs[name] = run
    return runs


def sweep(
    config: ConfigDict,
    grid: Mapping[str, Sequence[Any]],
    workdir: str | pathlib.Path,
    *,
    preemption: Preemption | None = None,
) -> list[SweepRun]:
    """Trains a config with each combination of some fields' values, each in its own folder of `workdir`.

    Runs that only differ in numbers which the compiled train step takes as inputs share one compiled program, see
    `deeplab_jax.training.step.hyperparams`. The results of each run are those that `train` gives for it alone. A run
    that is finished is skipped, and one that has stopped continues. A run that
    fails, for lack of memory for example, does not end the sweep.

    Args:
      config: the config that the runs share, see `deeplab_jax.config.base_config`.
      grid: see `plan_runs`.
      workdir: gets a workdir for each run, named by what differs, such as `learning_rate=0.01,momentum=0.9`.
      preemption: notices signals. Default: they are noticed while this function runs.

    Returns:
      The outcome of each run.

    Raises:
      UserError: see `plan_runs`; or a run does not fit its data or the devices; or `workdir` is itself the workdir of a
        run.
      Preempted: a signal stopped the sweep. The state of its run is saved; call the function again to continue.
    """
    workdir, runs = open_path(workdir), plan_runs(config, grid)
    if layout.is_workdir(workdir):
        raise UserError(f"{workdir} is the workdir of a run, not of a sweep; choose another --workdir")
    for name, run in runs.items():
        try:
            check_training(run)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    programs, outcomes = Programs(), []
    with contextlib.ExitStack() as stack:
        if preemption is None:
            preemption = stack.enter_context(Preemption())
        for number, (name, run) in enumerate(runs.items(), start=1):
            logger.info("Run %d of %d: %s", number, len(runs), name)
            try:
                scores = loop.train(run, workdir / name, preemption=preemption, programs=programs, skip_finished=True)
                outcomes.append(SweepRun(name, scores))
            except Exception as error:
                if not isinstance(error, UserError) and not is_out_of_memory(error):
                    raise
                reason = str(error) if isinstance(error, UserError) else "out of memory"
                logger.error("%s failed: %s", name, reason)
                outcomes.append(SweepRun(name, None, reason))
    return outcomes


def _value_text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
