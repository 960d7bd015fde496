"""Finds and runs config files."""

import importlib.util
import pathlib
import re
import traceback
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config.schema import FIELDS, iterate_fields
from deeplab_jax.config.serialization import read_saved
from deeplab_jax.config.suggestions import suggest_field
from deeplab_jax.errors import UserError, from_os_error, suggest
from deeplab_jax.files import local_path

_UNKNOWN_KEY = re.compile(r"Key \"(\w+)\" does not exist")  # the message of a locked ConfigDict


def find_config(name: str) -> pathlib.Path:
    """Finds a config file by its path, or by the name of a built-in config.

    Raises:
      UserError: the file does not exist.
    """
    path = local_path(name)
    if path.exists() and not path.is_dir():
        return path
    for folder in config_folders():
        candidate = folder / f"{path.stem}.py"
        if path.parent == pathlib.Path(".") and candidate.is_file():
            return candidate
    if path.is_dir():
        saved = f"; did you mean {path / 'config.json'}?" if (path / "config.json").is_file() else ""
        raise UserError(f"{name} is a folder, not a config{saved}")
    names = sorted({file.stem for folder in config_folders() for file in folder.glob("*.py")})
    raise UserError(f"no config named {name!r}: not a file and not a built-in config{suggest(path.stem, names)}")


def config_folders() -> list[pathlib.Path]:
    """Lists the folders of built-in configs: inside an installed package, next to the package in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def load_config(name: str, **args: Any) -> ConfigDict:
    """Loads a config, for example `load_config("kerascv_guide", size=256)`.

    Args:
      name: path of a config file, name of a built-in config, or path of the `config.json` of a training run.
      **args: arguments of the config, as after the colon of `--config`.

    Raises:
      UserError: the config or an argument does not exist, or the file has an error.
    """
    return read_config_file(find_config(name), ",".join(f"{key}={value}" for key, value in args.items()))


def read_config_file(path: pathlib.Path, argument: str = "") -> ConfigDict:
    """Runs a config file and returns the result of `get_config(argument)`.

    Args:
      path: a Python file; or the `config.json` of a training run, which takes no arguments.
      argument: see `deeplab_jax.config.parse_arg`.

    Raises:
      UserError: an argument does not exist, or the file has an error; the message names the line.
    """
    if path.suffix == ".json":
        if argument:
            raise UserError(f"{path} takes no arguments ({argument!r}); override its fields with --config.GROUP.FIELD=")
        return read_saved(path, for_training=True)
    if path.suffix != ".py":
        raise UserError(f"{path} is not a config: expected a Python file (.py), or the config.json of a training run")
    spec = importlib.util.spec_from_file_location(f"deeplab_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(argument)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"config {error.filename or path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise UserError(_explain(path, error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path}: get_config returned {type(config).__name__}, not a config; return the config")
    for field, _ in iterate_fields():
        if not _has_field(config, field):
            raise UserError(f"config {path} has no field {field}; start from deeplab_jax.config.base_config()")
    return config


def _has_field(config: ConfigDict, path: str) -> bool:
    for name in path.split("."):
        if not isinstance(config, ConfigDict) or name not in config:
            return False
        config = config[name]
    return True


def _explain(path: pathlib.Path, error: Exception) -> str:
    """Returns the line of a config file that raised an error, and the error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, OSError) and not frames:
        return str(from_os_error(error))
    where = f"config {path}, line {frames[-1].lineno}" if frames else f"config {path}"
    if unknown := _UNKNOWN_KEY.search(str(error)):
        # The error does not name the group, but the line of the file usually does.
        before = re.search(rf"(\w+)\.{unknown[1]}\b", frames[-1].line or "") if frames else None
        field = f"{before[1]}.{unknown[1]}" if before is not None and before[1] in FIELDS else unknown[1]
        return f"{where}: config field {field} does not exist{suggest_field(field)}"
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())}"
