"""Converts configs to and from JSON values, and compares them."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config.durations import parse_duration
from deeplab_jax.config.migration import VERSION, migrate_config
from deeplab_jax.config.schema import DURATION_FIELDS, base_config
from deeplab_jax.config.stages import stage_configs
from deeplab_jax.config.suggestions import suggest_field
from deeplab_jax.errors import UserError
from deeplab_jax.files import read_json


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Converts a config to JSON values. `from_dict` reads them back. `stages` is left out if there are none."""
    values = json.loads(json.dumps(config.to_dict()))
    if not values.get("stages", True):
        del values["stages"]
    return values


def from_dict(values: Mapping[str, Any]) -> ConfigDict:
    """Creates a config from JSON values of this version's fields; missing fields keep their defaults.

    Raises:
      UserError: the schema has no such field, or a stage sets it to a value of another type.
      TypeError: a value has another type than the field.
    """
    config, values = base_config(), dict(values)
    stages = values.pop("stages", {})
    _update(config, values, "")
    if not isinstance(stages, Mapping):
        raise TypeError(f"stages cannot be {stages!r}")
    config.stages = ConfigDict({name: _with_tuples(stage) for name, stage in stages.items()})
    stage_configs(config)  # checks their fields
    return config


def to_saved(config: ConfigDict) -> dict[str, Any]:
    """Converts a config to the contents of a workdir's `config.json`: its JSON values and the schema's version."""
    return {"version": VERSION, **to_dict(config)}


def from_saved(values: Mapping[str, Any], *, for_training: bool = False) -> ConfigDict:
    """Creates a config from the contents of a `config.json` that this or an earlier version wrote.

    Args:
      values: the contents.
      for_training: whether the config is for training, see `deeplab_jax.config.migrate_config`.

    Raises:
      UserError: a field does not exist or no longer works, or the version is newer than this package.
      TypeError: a value has another type than the field.
    """
    groups = dict(values)
    version = groups.pop("version", 1)
    return from_dict(migrate_config(groups, version, for_training=for_training))


def read_saved(path: pathlib.Path, *, for_training: bool = False) -> ConfigDict:
    """Reads a `config.json` that `deeplab-jax train` wrote, with this or an earlier version.

    Args:
      path: the file.
      for_training: whether the config is for training, see `deeplab_jax.config.migrate_config`.

    Raises:
      UserError: the file is missing, damaged or something else, or the config does not work with this version.
    """
    values = read_json(path)
    if "format" in values:
        raise UserError(f"{path} describes a saved network; expected the config.json of a training run")
    try:
        return from_saved(values, for_training=for_training)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def differences(config: ConfigDict, other: ConfigDict, *, groups: Sequence[str]) -> dict[str, str]:
    """Compares two configs field by field.

    Durations are equal if they mean the same, such as "500steps" and "500 steps".

    Args:
      config: a valid config.
      other: the config to compare it with.
      groups: names of the groups to compare.

    Returns:
      For the path of each field that differs, a line `group.field: value / other value`.
    """
    lines = {}
    for group in groups:
        for key, value in config[group].items():
            path, other_value = f"{group}.{key}", other[group][key]
            if _comparable(path, value) != _comparable(path, other_value):
                lines[path] = f"{path}: {value!r} / {other_value!r}"
    return lines


def _comparable(path: str, value: Any) -> Any:
    if path in DURATION_FIELDS and value is not None:
        return parse_duration(value, field=path)
    return to_dict(ConfigDict({"value": value}))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _update(config: ConfigDict, values: Mapping[str, Any], path: str) -> None:
    for key, value in values.items():
        if key not in config:
            raise UserError(f"config field {path}{key} does not exist{suggest_field(path + key)}")
        # ConfigDict would accept any type here.
        if isinstance(config[key], ConfigDict) != isinstance(value, Mapping):
            raise TypeError(f"{path}{key} cannot be {value!r}")
        if value is None and config[key] is not None:
            raise TypeError(f"{path}{key} has no value")
        if isinstance(value, Mapping):
            _update(config[key], value, f"{path}{key}.")
        else:
            config[key] = tuple(value) if isinstance(value, list) else value
