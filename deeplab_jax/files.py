"""Folders to write into, and files written whole or not at all."""

import json
import os
import pathlib
from typing import Any

from deeplab_jax.errors import UserError


def make_folder(folder: pathlib.Path, name: str) -> None:
    """Makes a folder and those around it, if they are not there.

    Raises:
      UserError: it cannot be made; `name` tells what it is for.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name} {folder} cannot be made: {error.strerror}") from None


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file's content so that a reader sees the old file or the new one, never a part.

    Raises:
      UserError: the file cannot be written; nothing is left half-written.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; check the folder and the disk's free space") from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part.

    Raises:
      UserError: the file cannot be written; nothing is left half-written.
    """
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
