"""Folders to write into, and files written whole or not at all."""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from deeplab_jax.errors import UserError

_DIGESTS_FILE = "digests.json"


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


def write_digests(folder: pathlib.Path, *, without: Sequence[str] = ()) -> None:
    """Writes `digests.json`: the SHA-256 of every file under `folder`, by its path there, but for those `without`."""
    digests = {name: _digest(folder / name) for name in _files(folder) if name not in without}
    (folder / _DIGESTS_FILE).write_text(json.dumps(digests, indent=1))


def find_damage(folder: pathlib.Path) -> str | None:
    """What is wrong with the files that `write` saw, None if nothing is.

    Files that were added later are no damage.
    """
    try:
        digests = json.loads((folder / _DIGESTS_FILE).read_bytes())
    except FileNotFoundError:
        return f"it has no {_DIGESTS_FILE}"
    except ValueError:
        return f"its {_DIGESTS_FILE} is no JSON"
    if not isinstance(digests, dict) or not digests:
        return f"its {_DIGESTS_FILE} names no file"
    for name, digest in digests.items():
        try:
            if _digest(folder / name) != digest:
                return f"its file {name} is not what was written"
        except OSError as error:
            return f"its file {name} cannot be read: {error.strerror}"
    return None


def _files(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
