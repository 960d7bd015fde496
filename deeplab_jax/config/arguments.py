"""Typed arguments of config files: `--config NAME:key=value,...`."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config.suggestions import find_field
from deeplab_jax.errors import UserError, suggest


def parse_arg(arg: str | None, choices: Mapping[str, Sequence[str]] | None = None, /, **defaults: Any) -> ConfigDict:
    """Parses the arguments of a config file, such as `size=256,batch=8` in `--config name:size=256,batch=8`.

    Args:
      arg: the string passed to `get_config`: comma-separated `key=value` pairs. A bare `key` sets a bool to True.
      choices: legal values of the arguments that have few of them.
      **defaults: every argument of the config with its default. A value must have the type of its default; an
        argument whose default is None takes a number.

    Returns:
      A value for every argument.

    Raises:
      UserError: an argument does not exist, or a value has the wrong type or is not among its choices.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, given, text = item.partition("=")
        if key not in defaults:
            field = find_field(key)
            hint = f", or set --config.{field}=..." if field is not None else ""
            raise UserError(f"config argument {key!r} does not exist{suggest(key, defaults)}{hint}")
        default = defaults[key]
        if isinstance(default, str):
            values[key] = text
            continue
        kind = "number" if default is None else type(default).__name__
        try:
            value = ast.literal_eval(text) if given else True
        except (SyntaxError, ValueError):
            raise UserError(f"config argument {key}={text!r} is not a {kind}") from None
        wanted = (int, float) if default is None or isinstance(default, float) else type(default)
        if not isinstance(value, wanted) or (isinstance(value, bool) and not isinstance(default, bool)):
            raise UserError(f"config argument {key}={text!r} is not a {kind}")
        values[key] = type(default)(value) if default is not None else value
    for key, legal in (choices or {}).items():
        if values[key] not in legal:
            raise UserError(f"{key}={values[key]} does not exist{suggest(values[key], legal)}")
    return ConfigDict(values)


def parse_stage(arg: str | None, stages: Mapping[int, Mapping[str, Any]], settable: Sequence[str]) -> ConfigDict:
    """Parses the arguments of a config file that trains in stages, each from the weights of the one before.

    Args:
      arg: the string passed to `get_config`. `stage=N` selects a stage (default: 1); the other arguments override
        its settings.
      stages: settings of each stage by number. `init` names the weights to start from; an empty string means that
        the user has to give it.
      settable: names of the settings that arguments can override. Each is a string or a number.

    Returns:
      The settings of the selected stage.

    Raises:
      UserError: an argument is invalid (see `parse_arg`), the stage does not exist, or `init` is missing.
    """
    given = parse_arg(arg, stage=1, **{name: "" if isinstance(stages[1][name], str) else None for name in settable})
    if given.stage not in stages:
        raise UserError(f"stage={given.stage} does not exist{suggest(str(given.stage), stages)}")
    settings = {**stages[given.stage], **{name: given[name] for name in settable if given[name] not in (None, "")}}
    if not settings["init"]:
        raise UserError(
            f"stage {given.stage} starts from the weights of the stage before; give its workdir, init=FOLDER"
        )
    return ConfigDict(settings)
