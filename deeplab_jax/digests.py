"""Digests of a folder's files: one that was cut short or changed on the disk is noticed before it is used."""

import hashlib
import json
import pathlib
from collections.abc import Sequence

_DIGESTS_FILE = "digests.json"


def write(folder: pathlib.Path, *, without: Sequence[str] = ()) -> None:
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
