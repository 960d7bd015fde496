"""Starts a training from other weights."""

import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.loading import BACKBONE_FIELDS, load, new_parts
from deeplab_jax.pretrained.merge import check_fit, merge
from deeplab_jax.training.state import TrainState


def init_from(
    new_state: Callable[[], TrainState],
    shapes: TrainState,
    model: ConfigDict,
    name_or_path: str | pathlib.Path,
    *,
    console: Console | None = None,
) -> tuple[TrainState, str]:
    """A fresh state with the parameters, their averages if it has any, and batch statistics of another run or a preset.

    The classifier is taken over only if it has the same classes; its size decides. Of a backbone preset the backbone
    is. Everything else has to fit.

    Args:
      new_state: makes the fresh state; called when the other network is known to fit, for it may take long.
      shapes: of the fresh state.
      model: the `config.model` of the state's network.
      name_or_path: as for `load`.
      console: shows the progress of a download.

    Returns:
      The state, and a line that says what was taken and what was not.

    Raises:
      UserError: nothing to load, or networks that differ in more than their classifier.
    """
    network = load(name_or_path, console=console)
    here, there = model.to_dict(), network.model.to_dict()
    wrong = [
        f"config.model.{field}={there[field]!r} (is {here[field]!r})"
        for field in BACKBONE_FIELDS
        if here[field] != there[field]
    ]
    if wrong:
        raise UserError(f"train.init_from={name_or_path} needs {', '.join(wrong)}")
    check_fit(shapes.variables, network.variables, reinitialize=new_parts(network))
    state = new_state()
    variables, report = merge(state.variables, network.variables, reinitialize=new_parts(network))
    report += _other_rates(here, there) if network.label_set is not None else ""
    started = state.replace(**variables)
    if state.ema_variables is not None:
        started = started.with_averages()
    return started, f"Starting from {name_or_path}: {report}"


def _other_rates(here: dict[str, Any], there: dict[str, Any]) -> str:
    """Tells of ASPP kernels that saw other distances; rates that follow the output stride see the same ones."""
    stride, other_stride = here["atrous_rates_stride"], there["atrous_rates_stride"]
    distances = [rate * stride for rate in here["atrous_rates"]]
    if distances == [rate * other_stride for rate in there["atrous_rates"]]:
        return ""
    return (
        f"; ASPP learned at rates {tuple(there['atrous_rates'])} for stride {other_stride}, "
        f"here they are {tuple(here['atrous_rates'])} for {stride}"
    )
