"""Stages of a training: named groups of fields that differ from the rest of the config, one training after another."""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config.assignment import set_field
from deeplab_jax.config.schema import get_field
from deeplab_jax.errors import UserError

# A stage's name is the name of its folder. "@" would separate a checkpoint.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def stage_names(config: ConfigDict) -> list[str]:
    """Lists the stages of a config in the order in which they train.

    That is the order of their names, since a `ConfigDict` sorts its keys. Numbers in names count as numbers: `stage10`
    comes after `stage9`.
    """
    return sorted(config.stages, key=lambda name: [(part.zfill(20), part) for part in re.split(r"(\d+)", name)])


def stage_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the whole config of each stage: the shared fields, with those that the stage sets.

    Raises:
      UserError: a stage or a field of it does not exist or has another type, or the name is not that of a folder.
    """
    return {name: stage_config(config, name) for name in stage_names(config)}


def stage_config(config: ConfigDict, name: str) -> ConfigDict:
    """Returns the whole config of one stage, see `stage_configs`."""
    if not _NAME.fullmatch(name):
        raise UserError(f"stages.{name}: a stage is also a folder; use letters, digits, '-', '_' and '.' for its name")
    whole = config.copy_and_resolve_references()
    whole.stages = ConfigDict()
    for path, value in stage_fields(config, name).items():
        try:
            set_field(whole, path, value)
        except UserError as error:
            raise UserError(f"stages.{name}: {error}") from None
    return whole


def stage_fields(config: ConfigDict, name: str) -> dict[str, Any]:
    """Returns the fields that a stage sets, by path, such as `model.output_stride`."""
    if not isinstance(config.stages[name], Mapping | ConfigDict):
        raise UserError(f"stages.{name}={config.stages[name]!r} must be groups of fields, such as {{'model': {{...}}}}")
    return dict(_flatten(config.stages[name], ""))


def add_stage_field(config: ConfigDict, path: str) -> None:
    """Lets a stage set a field that it shares so far, with the shared value.

    Args:
      config: a config.
      path: path of the field, such as `stages.stage2.optimizer.momentum`. Nothing happens if it does not name a stage
        and a field, or if the stage sets the field.
    """
    prefix, _, rest = path.partition(".")
    name, _, field = rest.partition(".")
    if prefix != "stages" or name not in config.stages:
        return
    try:
        value = get_field(config, field)
    except (KeyError, TypeError):
        return
    *groups, last = field.split(".")
    group = config.stages[name]
    with config.unlocked():
        for key in groups:
            if key not in group:
                group[key] = ConfigDict()
            group = group[key]
        if last not in group and not isinstance(value, ConfigDict):
            group[last] = value


def _flatten(group: Mapping[str, Any] | ConfigDict, prefix: str) -> list[tuple[str, Any]]:
    pairs = []
    for key, value in group.items():
        path = prefix + key
        pairs += _flatten(value, f"{path}.") if isinstance(value, Mapping | ConfigDict) else [(path, value)]
    return pairs
