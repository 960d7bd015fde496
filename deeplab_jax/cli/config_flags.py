"""The config of a command line: `--config NAME` and its overrides, `--config.group.field=value`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deeplab_jax.errors import UsageError
from deeplab_jax.files import local_path

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def parse_config(arguments: Sequence[str], *, base: "ConfigDict | None" = None) -> "ConfigDict":
    """Builds the config that a command line describes.

    Args:
      arguments: `--config NAME[:key=value,...]` and `--config.group.field=value`. A value can follow its name after
        a space or an equals sign. `None` or `none` unsets a field whose default is None.
      base: the config to override if there is no `--config NAME`. It is changed in place.

    Raises:
      UserError: the config does not exist, or it rejects an argument.
      UsageError: no config is given to start from, a field does not exist, or a value has the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    from deeplab_jax import config as config_lib

    arguments, name = _take_name(list(arguments))
    if name is None and base is None:
        raise UsageError("no --config given; try --config quickstart, or see `deeplab-jax configs`")
    if name is not None:
        local_path(name)  # an address has a colon as well
        file, _, argument = name.partition(":")
        base = config_lib.read_config_file(config_lib.find_config(file), argument)
    arguments, unset = _take_unset(arguments)
    for item in arguments:
        if item.startswith("--config.stages."):  # flags only change fields that are there
            config_lib.add_stage_field(base, item.removeprefix("--config.").split("=")[0])
    _check_fields([*arguments, *(f"--config.{path}=None" for path in unset)], base)
    values, argv = flags.FlagValues(), ["deeplab-jax", *arguments]
    try:
        config_flags.DEFINE_config_dict("config", base, flag_values=values, sys_argv=argv)
        values(argv)
        for path in unset:
            config_lib.set_field(values.config, path, None)
        return values.config
    except (flags.Error, TypeError, ValueError, SyntaxError) as error:
        raise UsageError(f"config: {' '.join(str(error).split())}") from None


def parse_stage_config(arguments: Sequence[str], stage: str | None) -> "ConfigDict":
    """Builds the config of one stage, or the whole config if it has no stages.

    Args:
      arguments: see `parse_config`.
      stage: name of the stage; None for the last.

    Raises:
      UserError: see `parse_config`; or the stage does not exist.
      UsageError: see `parse_config`.
    """
    from deeplab_jax import config as config_lib
    from deeplab_jax.errors import UserError, suggest

    config = parse_config(arguments)
    names = config_lib.stage_names(config)
    if stage is not None and stage not in names:
        raise UserError(f"the config has no stage {stage!r}{suggest(stage, names) if names else ''}")
    return config_lib.stage_config(config, stage or names[-1]) if names else config


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates `--config...` arguments, with their values, from all others."""
    config, others, items = [], [], iter(arguments)
    for item in items:
        if not item.startswith("--config"):
            others.append(item)
            continue
        config.append(item)
        if "=" not in item:
            config += [value for value in [next(items, None)] if value is not None]
    return config, others


def _take_name(arguments: list[str]) -> tuple[list[str], str | None]:
    """Separates `--config NAME` or `--config=NAME` from the overrides."""
    name, rest, items = None, [], iter(arguments)
    for item in items:
        if item == "--config":
            name = next(items, None)
            if name is None:
                raise UsageError("--config needs the name of a config or a file")
        elif item.startswith("--config="):
            name = item.removeprefix("--config=")
        else:
            rest.append(item)
    return rest, name


def _take_unset(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates the paths of optional fields whose last value is None, which the flags of their types reject."""
    from deeplab_jax.config import FIELDS

    rest, unset, items = [], [], iter(arguments)
    for item in items:
        path, equals, value = item.removeprefix("--config.").partition("=")
        group, _, name = path.rpartition(".")
        field = FIELDS.get(group.rpartition(".")[2], {}).get(name)
        if field is None or field.default is not None:
            rest.append(item)
            continue
        parts = [item] if equals else [item, *[value for value in [next(items, None)] if value is not None]]
        unset = [other for other in unset if other != path]
        if (value if equals else parts[-1]) in ("None", "none"):
            unset.append(path)
            rest = _without(rest, path)
        else:
            rest += parts
    return rest, unset


def _without(arguments: Sequence[str], path: str) -> list[str]:
    """Removes earlier values of a field."""
    rest, items = [], iter(arguments)
    for item in items:
        if item == f"--config.{path}":
            next(items, None)
        elif not item.startswith(f"--config.{path}="):
            rest.append(item)
    return rest


def _check_fields(arguments: Sequence[str], config: "ConfigDict") -> None:
    """Raises a UsageError that suggests the closest name if an override names a field that does not exist."""
    from ml_collections import ConfigDict

    from deeplab_jax.config import suggest_field

    for item in arguments:
        if not item.startswith("--config."):
            continue
        path = item.removeprefix("--config.").split("=")[0]
        group = config
        for key in path.split("."):
            if not isinstance(group, ConfigDict) or key not in group:
                raise UsageError(f"config field {path} does not exist{suggest_field(path)}")
            group = group[key]
        if isinstance(group, ConfigDict):
            fields = ", ".join(f"{path}.{key}" for key in group)
            raise UsageError(f"config field {path} is a group of fields; set one of {fields}")
