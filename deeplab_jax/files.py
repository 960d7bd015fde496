"""Writing files completely or not at all, and detecting damaged ones."""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from deeplab_jax.errors import UserError

#: File of a folder with the digests of its other files, see `write_digests`.
DIGESTS_FILE = "digests.json"


def create_folder(folder: pathlib.Path, name: str) -> None:
    """Creates a folder and its parents, unless they exist.

    Args:
      folder: the folder.
      name: what to call it in the message, for example "--output".

    Raises:
      UserError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {name} {folder}: {error.strerror}") from None


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, or replaces its content. Readers see the old content or the new one, never a part of it.

    Raises:
      UserError: the file cannot be written; an existing one is unchanged.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; check the folder and the disk's free space") from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON, see `write_atomically`.

    Raises:
      UserError: the file cannot be written.
      ValueError: the value contains NaN or infinity.
    """
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_digests(folder: pathlib.Path, *, exclude: Sequence[str] = ()) -> None:
    """Writes `digests.json` with the SHA-256 of every file in a folder and its subfolders, for `find_damage`.

    Args:
      folder: the folder.
      exclude: paths in the folder to leave out.
    """
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    digests = {name: file_digest(folder / name) for name in files if name not in exclude}
    (folder / DIGESTS_FILE).write_text(json.dumps(digests, indent=1))


def find_damage(folder: pathlib.Path) -> str | None:
    """Compares the files of a folder with its `digests.json`. Files that were added later are not checked.

    Returns:
      The first problem, as the end of a sentence about the folder; None if there is none.
    """
    try:
        digests = json.loads((folder / DIGESTS_FILE).read_bytes())
    except FileNotFoundError:
        return f"it has no {DIGESTS_FILE}"
    except ValueError:
        return f"its {DIGESTS_FILE} is not valid JSON"
    if not isinstance(digests, dict) or not digests:
        return f"its {DIGESTS_FILE} names no files"
    for name, digest in digests.items():
        try:
            if file_digest(folder / name) != digest:
                return f"its file {name} has changed since it was written"
        except OSError as error:
            return f"its file {name} cannot be read: {error.strerror}"
    return None


def file_digest(path: pathlib.Path, algorithm: str = "sha256") -> str:
    """The digest of a file as hex digits. `algorithm` is a name that `hashlib.new` accepts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
