"""Writing files completely or not at all, reading JSON that may be damaged, and detecting damaged files."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from deeplab_jax import budget
from deeplab_jax.errors import UserError, from_os_error
from deeplab_jax.storage import BucketPath, is_bucket_address
from deeplab_jax.storage.failures import check_installed

#: File of a folder with the digests of its other files, see `write_digests`.
DIGESTS_FILE = "digests.json"

#: Longest result of `readable_name` without its digest. A file name may have 255 bytes.
LONGEST_NAME = 100

# A drive of Windows has one letter. `pathlib.Path` makes one slash of two.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def open_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path of this machine's file system, or of a bucket (`gs://bucket/folder`, `s3://bucket/folder`).

    Raises:
      UserError: it is another address, it names no bucket, or the package for buckets is not installed.
    """
    if isinstance(path, BucketPath):
        return path
    text = os.fspath(path)
    if is_bucket_address(text):
        scheme, _, rest = text.partition(":")
        if not rest.strip("/"):
            raise UserError(f"{text} names no bucket; an address is {scheme.lower()}://bucket/folder")
        check_installed(f"{scheme.lower()}://{rest.lstrip('/')}")
        return BucketPath(f"{scheme.lower()}:{rest}")
    return local_path(path)


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path of this machine's file system.

    Raises:
      UserError: it is an address, such as `gs://bucket/folder`, which would name a local folder `gs:`.
    """
    text = os.fspath(path)
    if is_bucket_address(text):
        raise UserError(f"{text} is in a bucket, but this has to be a local file or folder; copy it to this machine")
    if _ADDRESS.match(text):
        raise UserError(
            f"{text} is an address, but only files, folders and buckets (gs://, s3://) are supported; copy the files "
            "to this machine, or mount the storage as a folder"
        )
    return pathlib.Path(path)


def create_folder(folder: pathlib.Path, name: str) -> None:
    """Creates a folder and its parents, unless they exist.

    Args:
      folder: the folder.
      name: what to call it in the message, for example "--output".

    Raises:
      UserError: the folder cannot be created.
    """
    try:
        open_path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"cannot create {name} {folder}") from None


def check_new_folder(folder: pathlib.Path) -> None:
    """Checks that a folder to write does not exist yet, or is empty.

    Raises:
      UserError: it is not.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; choose another folder or remove it")


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, or replaces its content. Readers see the old content or the new one, never a part of it.

    A link stays, and the file that it points at is replaced. A device or a pipe, such as `/dev/stdout`, is written to.
    In a bucket, this is one upload.

    Raises:
      UserError: the file cannot be written; an existing one is unchanged.
    """
    path = open_path(path)
    if isinstance(path, BucketPath):
        path.write_bytes(content)
        return
    target = pathlib.Path(os.path.realpath(path))
    temporary = target.with_name(target.name + ".part")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        temporary.write_bytes(content)
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):  # where it cannot be written, it may not be removed either
            temporary.unlink(missing_ok=True)
        raise from_os_error(error, f"cannot write {path}") from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON, see `write_atomically`.

    Raises:
      UserError: the file cannot be written.
      ValueError: the value contains NaN or infinity.
    """
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def readable_name(text: str) -> str:
    """Returns a part of a file name for a text, such as "eval.scales=0.5,1.0".

    A text that is longer than `LONGEST_NAME` or has other characters than letters, digits and ".,;=+_-" loses them and
    ends with a digest, so that other texts have other names.
    """
    readable = re.sub(r"[^A-Za-z0-9.,;=+_-]", "", text)[:LONGEST_NAME]
    return readable if readable == text else f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def read_json(path: pathlib.Path, *, max_bytes: int = budget.JSON_BYTES, kind: type = dict) -> Any:
    """Reads a JSON object from a file that may be damaged or come from a stranger.

    Args:
      path: the file.
      max_bytes: see `parse_json`.
      kind: see `parse_json`.

    Raises:
      UserError: the file is missing or unreadable, or `parse_json` rejects it.
    """
    path = open_path(path)
    if not path.is_file():
        raise UserError(f"{path} {'is not a file' if path.exists() else 'is missing'}")
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from None
    return parse_json(content, path, max_bytes=max_bytes, kind=kind)


def parse_json(content: bytes, name: object, *, max_bytes: int = budget.JSON_BYTES, kind: type = dict) -> Any:
    """Parses a JSON object: UTF-8, of limited size and depth, with every name once and without NaN.

    Args:
      content: the encoded object.
      name: file that error messages name.
      max_bytes: most bytes to accept.
      kind: the type to accept: `dict`, or `list` for a JSON array.

    Raises:
      UserError: the content is something else.
    """
    if len(content) > max_bytes:
        raise UserError(f"{name} is larger than {max_bytes >> 20} MiB, the limit for JSON files")
    try:
        values = json.loads(content.decode(), parse_constant=_reject_constant, object_pairs_hook=_unique_names)
        is_deep = _is_deeper(values, budget.JSON_DEPTH)
    except RecursionError:
        is_deep = True
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is damaged: byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise UserError(f"{name} is damaged: not valid JSON ({error})") from None
    if is_deep:
        raise UserError(f"{name} is damaged: its JSON is nested more than {budget.JSON_DEPTH} levels deep")
    if not isinstance(values, kind):
        raise UserError(f"{name} is damaged: it is not a JSON {'object' if kind is dict else 'array'}")
    return values


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` levels deep."""
    level = [[value]]
    for _ in range(depth + 1):
        nested = (parent.values() if isinstance(parent, dict) else parent for parent in level)
        level = [child for children in nested for child in children if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return values


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
    if not (folder / DIGESTS_FILE).exists():
        return f"it has no {DIGESTS_FILE}"
    try:
        digests = read_json(folder / DIGESTS_FILE)
    except UserError as error:
        return str(error)
    if not digests:
        return f"its {DIGESTS_FILE} names no files"
    for name, digest in digests.items():
        try:
            # The folder may come from a stranger: reading a device or a pipe would never end.
            if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
                return f"its {DIGESTS_FILE} names the file {name!r}, which is outside the folder"
            budget.file_size(folder / name)
            if file_digest(folder / name) != digest:
                return f"its file {name} has changed since it was written"
        except OSError as error:
            return f"its file {name} cannot be read: {error.strerror or error}"
        except ValueError as error:  # a name that no file can have
            return f"its {DIGESTS_FILE} names the file {name!r}: {error}"
    return None


def file_digest(path: pathlib.Path, algorithm: str = "sha256") -> str:
    """The digest of a file as hex digits. `algorithm` is a name that `hashlib.new` accepts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
