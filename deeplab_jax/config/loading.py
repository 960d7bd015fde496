"""Finds and runs config files."""

import importlib.util
import pathlib
import traceback
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.errors import UserError, suggest


def find_config(name: str) -> pathlib.Path:
    """The file of a config: a path, or the name of one that the package brings.

    Raises:
      UserError: there is no such file.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    for folder in config_folders():
        candidate = folder / f"{path.stem}.py"
        if path.parent == pathlib.Path(".") and candidate.is_file():
            return candidate
    names = sorted({file.stem for folder in config_folders() for file in folder.glob("*.py")})
    raise UserError(f"config {name!r} is no file and no config of the package{suggest(path.stem, names)}")


def config_folders() -> list[pathlib.Path]:
    """Where the package's configs lie: inside it when installed, next to it in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def load_config(name: str, **arguments: Any) -> ConfigDict:
    """The config of a file or name, for notebooks and tests: `load_config("kerascv_guide", size=256)`.

    Raises:
      UserError: no such config, or an argument it does not know.
    """
    return read_config_file(find_config(name), ",".join(f"{key}={value}" for key, value in arguments.items()))


def read_config_file(path: pathlib.Path, argument: str = "") -> ConfigDict:
    """What `get_config(argument)` of a config file returns.

    Raises:
      UserError: an argument it does not know, or a mistake in the file; the message names the line.
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
