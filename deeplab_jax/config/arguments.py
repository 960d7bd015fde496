"""Typed arguments of config files: `--config NAME:key=value,...`."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.errors import UserError, suggest


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """The arguments behind the colon of `--config name:size=256,batch=8`, typed by their defaults.

    Args:
      arg: what `get_config` received: comma-separated `key=value`; a bool may stand without a value.
      **defaults: every argument the config knows with its default; a value must have the default's type, where
        None stands for a number.

    Raises:
      UserError: an unknown argument, or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, given, text = item.partition("=")
        if key not in defaults:
            raise UserError(f"config argument {key!r} does not exist{suggest(key, defaults)}")
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
    return ConfigDict(values)


def parse_leg(arg: str | None, legs: Mapping[int, Mapping[str, Any]], settable: Sequence[str]) -> ConfigDict:
    """The settings of one leg of a run, whose legs begin with the weights of the one before.

    Args:
      arg: what `get_config` received. `leg` chooses, 1 if not given; the others replace settings.
      legs: the settings of each by its number. `init` are the weights it begins with, "" where they have to be given.
      settable: the settings that `arg` can replace: text, and numbers.

    Raises:
      UserError: as `parse_arg`; there is no such leg; a leg without weights to begin with.
    """
    given = parse_arg(arg, leg=1, **{name: "" if isinstance(legs[1][name], str) else None for name in settable})
    if given.leg not in legs:
        raise UserError(f"leg={given.leg} does not exist{suggest(str(given.leg), legs)}")
    settings = {**legs[given.leg], **{name: given[name] for name in settable if given[name] not in (None, "")}}
    if not settings["init"]:
        raise UserError(f"leg {given.leg} begins with the weights of the one before: give its workdir, init=FOLDER")
    return ConfigDict(settings)
