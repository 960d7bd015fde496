"""The state that a training starts from: its newest checkpoint, the weights of another network, or random ones."""

import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.errors import UserError
from deeplab_jax.parallel import processes
from deeplab_jax.pretrained.loading import BACKBONE_FIELDS, load, new_parts
from deeplab_jax.pretrained.merge import check_fit, merge
from deeplab_jax.pretrained.stem import changes_of, with_channels
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import TrainProgram
from deeplab_jax.workdir.bucket_checkpoints import BucketCheckpoints
from deeplab_jax.workdir.checkpoint import Checkpoints

logger = logging.getLogger(__name__)


def first_state(
    config: ConfigDict, program: TrainProgram, checkpoints: Checkpoints | BucketCheckpoints, total_steps: int
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state to start from, and the notes of the checkpoint that a run continues from.

    The state is the workdir's newest checkpoint, or else comes from `train.init_from`, or else is random.

    Raises:
      UserError: the run has taken more than `total_steps` steps.
    """
    processes.check_same_step(checkpoints.found_step())
    notes = {"window": None, "evaluation_due": False, "stale": 0}
    if checkpoints.latest_step() is not None:
        variables, training, saved_notes = checkpoints.restore(**program.shapes.to_items())
        state = program.shapes.with_items(variables=variables, training=training)
        if (step := int(state.step)) > total_steps:
            raise UserError(
                f"the run in {checkpoints.workdir} has taken {step} steps, more than the {total_steps} of "
                f"train.duration={config.train.duration!r}; --extend needs a longer one"
            )
        logger.info("Continuing %s from step %d of %d", checkpoints.workdir, step, total_steps)
        return state, notes | saved_notes
    create = functools.partial(program.random_state, seed=config.train.seed)
    if config.train.init_from is None:
        return create(), notes
    state, report = init_from(create, program.shapes, config.model, config.train.init_from)
    logger.info(report)
    return state, notes


def init_from(
    new_state: Callable[[], TrainState],
    shapes: TrainState,
    model: ConfigDict,
    name_or_path: str | pathlib.Path,
) -> tuple[TrainState, str]:
    """Creates a state with the parameters and batch statistics of another run or a preset.

    Classifiers are copied only if they have the same number of classes. From a backbone preset, only the backbone is
    copied. The auxiliary head may be missing on either side, and the first convolution is adapted to the channels of
    the images (see `deeplab_jax.pretrained.stem`). Everything else must fit. Averages, if the state has them,
    start as a copy of the variables.

    Args:
      new_state: creates a fresh state. It is called once the other network is known to fit, since it may be slow.
      shapes: shapes of the fresh state.
      model: `config.model` of the network to train.
      name_or_path: see `deeplab_jax.pretrained.load`.

    Returns:
      The state, and one line that reports what was copied and what was not.

    Raises:
      UserError: there is nothing to load, or the networks differ in more than their classifier.
    """
    network = load(name_or_path)
    note = changes_of(network, model)
    network = with_channels(network, model.in_channels)
    here, there = model.to_dict(), network.model.to_dict()
    wrong = [
        f"config.model.{field}={there[field]!r} (is {here[field]!r})"
        for field in BACKBONE_FIELDS
        # The normalization of other channels is that of the data.
        if here[field] != there[field] and not (note and field in ("input_mean", "input_std"))
    ]
    if wrong:
        raise UserError(f"train.init_from={name_or_path} needs {', '.join(wrong)}")
    check_fit(shapes.variables, network.variables, reinitialize=new_parts(network))
    state = new_state()
    variables, report = merge(state.variables, network.variables, reinitialize=new_parts(network))
    report += note + (_other_rates(here, there) if network.label_set is not None else "")
    started = state.replace(**variables)
    if state.ema_variables is not None:
        started = started.with_averages()
    return started, f"Starting from {name_or_path}: {report}"


def _other_rates(here: dict[str, Any], there: dict[str, Any]) -> str:
    """Reports ASPP kernels that were trained at other distances. Rates that follow the output stride do not differ."""
    stride, other_stride = here["atrous_rates_stride"], there["atrous_rates_stride"]
    distances = [rate * stride for rate in here["atrous_rates"]]
    if distances == [rate * other_stride for rate in there["atrous_rates"]]:
        return ""
    return (
        f"; ASPP was trained at rates {tuple(there['atrous_rates'])} for stride {other_stride}, "
        f"this run uses {tuple(here['atrous_rates'])} for stride {stride}"
    )
