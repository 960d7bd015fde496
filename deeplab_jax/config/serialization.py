"""Configs as JSON, and how two differ."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config.schema import base_config
from deeplab_jax.errors import UserError, suggest


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON can hold it; `from_dict` reads it back."""
    return json.loads(json.dumps(config.to_dict()))


def from_dict(values: Mapping[str, Any]) -> ConfigDict:
    """The config of a workdir: the schema with these values.

    Raises:
      UserError: a field that the schema does not have.
      TypeError: a value of another type than the schema's.
    """
    config = base_config()
    _update(config, values, "")
    return config


def _update(config: ConfigDict, values: Mapping[str, Any], path: str) -> None:
    for key, value in values.items():
        if key not in config:
            raise UserError(f"config field {path}{key} does not exist{suggest(key, config.keys())}")
        # What a ConfigDict would take for a value of any type.
        if isinstance(config[key], ConfigDict) != isinstance(value, Mapping):
            raise TypeError(f"{path}{key} cannot be {value!r}")
        if value is None and config[key] is not None:
            raise TypeError(f"{path}{key} has no value")
        if isinstance(value, Mapping):
            _update(config[key], value, f"{path}{key}.")
        else:
            config[key] = tuple(value) if isinstance(value, list) else value


def differences(config: ConfigDict, other: ConfigDict, *, groups: Sequence[str]) -> dict[str, str]:
    """The fields in which two configs differ, each with `group.field: value here / value there`."""
    lines = {}
    for group in groups:
        for key, value in config[group].items():
            if to_dict(ConfigDict({key: value})) != to_dict(ConfigDict({key: other[group][key]})):
                lines[f"{group}.{key}"] = f"{group}.{key}: {value!r} / {other[group][key]!r}"
    return lines
