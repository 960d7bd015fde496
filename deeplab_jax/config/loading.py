"""Finds and runs config files."""

import importlib.util
import pathlib
import traceback
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.errors import UserError, suggest


def find_config(name: str) -> pathlib.Path:
    """Finds a config file by its path, or by the name of a built-in config.

    Raises:
      UserError: the file does not exist.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    for folder in config_folders():
        candidate = folder / f"{path.stem}.py"
        if path.parent == pathlib.Path(".") and candidate.is_file():
            return candidate
    names = sorted({file.stem for folder in config_folders() for file in folder.glob("*.py")})
    raise UserError(f"no config named {name!r}: not a file and not a built-in config{suggest(path.stem, names)}")


def config_folders() -> list[pathlib.Path]:
    """Lists the folders of built-in configs: inside an installed package, next to the package in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def load_config(name: str, **args: Any) -> ConfigDict:
    """Loads a config, for example `load_config("kerascv_guide", size=256)`.

    Args:
      name: path of a config file, or name of a built-in config.
      **args: arguments of the config, as after the colon of `--config`.

    Raises:
      UserError: the config or an argument does not exist, or the file has an error.
    """
    return read_config_file(find_config(name), ",".join(f"{key}={value}" for key, value in args.items()))


def read_config_file(path: pathlib.Path, argument: str = "") -> ConfigDict:
    """Runs a config file and returns the result of `get_config(argument)`.

    Raises:
      UserError: an argument does not exist, or the file has an error; the message names the line.
    """
    spec = importlib.util.spec_from_file_location(f"deeplab_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(argument)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"config {error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"config {where}: {type(error).__name__}: {' '.join(str(error).split())}") from error
