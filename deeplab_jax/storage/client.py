"""Requests to object storage, through the file systems of fsspec for Google Cloud Storage and S3.

The libraries' own variables and files decide about credentials and servers: `GOOGLE_APPLICATION_CREDENTIALS` and
`STORAGE_EMULATOR_HOST`, `AWS_PROFILE`, `AWS_ENDPOINT_URL` and so on. Listings are never cached, since other processes
write. Errors that a user has to fix (no such bucket, no permission, no connection) are one line; a missing file is
`FileNotFoundError`, as on a disk.
"""

import concurrent.futures
import dataclasses
import functools
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from deeplab_jax.errors import UserError
from deeplab_jax.storage import failures, versions

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Seconds for which requests are repeated while the server cannot be reached, once it could be reached.
PATIENCE = 300
_LONGEST_PAUSE = 15
_SILENCE = 60  # seconds after which a server that sends nothing counts as unreachable
_PARALLEL = 8  # transfers at a time


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file or folder.

    Attributes:
      name: its path below the folder that was listed.
      size: bytes of a file.
      modified: time of the last change, in seconds since the epoch; 0 for a folder.
      is_folder: whether objects exist below it.
    """

    name: str
    size: int
    modified: float
    is_folder: bool


def find_entry(path: pathlib.Path) -> Entry | None:
    """Returns the file or folder of this path; None if there is none."""
    fs, key = _open(path)
    if "/" not in key:  # the bucket, which exists
        return Entry(key, 0, 0.0, is_folder=True)
    try:
        return _entry(_request(path, lambda: fs.info(key)), path.name)
    except FileNotFoundError:
        return None


def list_folder(path: pathlib.Path) -> list[Entry]:
    """Returns the files and folders in a folder, sorted by name; none if it does not exist."""
    fs, key = _open(path)
    return _below(key, lambda: _request(path, lambda: fs.ls(key, detail=True)))


def list_files(path: pathlib.Path) -> list[Entry]:
    """Returns all files below a folder, sorted by name."""
    fs, key = _open(path)
    return _below(key, lambda: list(_request(path, lambda: fs.find(key, detail=True)).values()))


def read(path: pathlib.Path) -> bytes:
    """Reads an object.

    Raises:
      FileNotFoundError: there is none.
    """
    fs, key = _open(path)
    try:
        return _request(path, lambda: fs.cat_file(key))
    except FileNotFoundError:
        if list_folder(path):
            raise IsADirectoryError(21, "Is a folder", str(path)) from None
        raise


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes an object."""
    fs, key = _open(path)
    _request(path, lambda: fs.pipe_file(key, content))


def delete(paths: Iterable[pathlib.Path]) -> None:
    """Deletes objects, in parallel. Those that do not exist are left out."""

    def remove(path: pathlib.Path) -> None:
        fs, key = _open(path)
        try:
            _request(path, lambda: fs.rm_file(key))
        except FileNotFoundError:
            return

    _in_parallel(remove, list(paths))


def upload(pairs: Iterable[tuple[pathlib.Path, pathlib.Path]]) -> None:
    """Uploads local files, in parallel: (file, path in the bucket)."""

    def send(pair: tuple[pathlib.Path, pathlib.Path]) -> None:
        fs, key = _open(pair[1])
        _request(pair[1], lambda: fs.put_file(str(pair[0]), key))

    _in_parallel(send, list(pairs))


def download(pairs: Iterable[tuple[pathlib.Path, pathlib.Path]]) -> None:
    """Downloads objects, in parallel: (path in the bucket, file). The folders of the files are created.

    Raises:
      FileNotFoundError: an object does not exist.
    """

    def fetch(pair: tuple[pathlib.Path, pathlib.Path]) -> None:
        fs, key = _open(pair[0])
        pair[1].parent.mkdir(parents=True, exist_ok=True)
        _request(pair[0], lambda: fs.get_file(key, str(pair[1])))

    _in_parallel(fetch, list(pairs))


def read_version(path: pathlib.Path) -> versions.Version | None:
    """Reads an object with its version and its age; None if there is none."""
    fs, key = _open(path)
    try:
        return _request(path, lambda: versions.read(fs, key))
    except FileNotFoundError:
        return None


def replace_version(path: pathlib.Path, content: bytes, version: str | None) -> str | None:
    """Writes an object if it still has this version.

    Args:
      path: the object.
      content: its new content, which no other process writes.
      version: the version to replace; None if there must be no object.

    Returns:
      The new version; None if the object has another version.
    """
    fs, key = _open(path)
    try:
        return _request(path, lambda: versions.write(fs, key, content, version))
    except versions.Conflict:
        now = read_version(path)  # a request that is repeated conflicts with itself if the first answer was lost
        return now.version if now is not None and now.content == content else None


def _in_parallel(function: Callable[[Any], None], items: list[Any]) -> None:
    if len(items) < 2:
        for item in items:
            function(item)
        return
    with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(function, items))


def _below(key: str, request: Callable[[], list[dict[str, Any]]]) -> list[Entry]:
    try:
        found = request()
    except FileNotFoundError:
        return []
    prefix = f"{key}/"
    names = ((info, info["name"].rstrip("/").removeprefix(prefix)) for info in found)
    # An object of the folder's own name is listed as if it was inside.
    entries = [_entry(info, name) for info, name in names if name and info["name"].startswith(prefix)]
    return sorted(entries, key=lambda entry: entry.name)


def _entry(info: dict[str, Any], name: str) -> Entry:
    modified = info.get("LastModified") or info.get("mtime")
    is_folder = info["type"] == "directory"
    return Entry(name, info["size"] or 0, modified.timestamp() if modified and not is_folder else 0.0, is_folder)


def _request(path: pathlib.Path, function: Callable[[], _T]) -> _T:
    """Sends a request, and again while the server cannot be reached."""
    deadline, pause = time.monotonic() + PATIENCE, 1.0
    while True:
        try:
            return function()
        except (FileNotFoundError, versions.Conflict):
            raise
        except Exception as error:
            problem = failures.describe(error, str(path))
            if problem is None:
                raise
            if not problem.is_temporary or time.monotonic() > deadline:
                raise UserError(problem.message) from error
            logger.warning("%s; trying again for %d minutes", problem.message, PATIENCE // 60)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _open(path: pathlib.Path) -> tuple[Any, str]:
    """Returns the file system of a path and the path in it, `bucket/key`."""
    scheme, *rest = path.parts
    if not rest:
        raise UserError(f"{path} names no bucket; write {scheme}//BUCKET/FOLDER")
    return _bucket(scheme, rest[0], os.getpid()), "/".join(rest)


@functools.cache
def _bucket(scheme: str, bucket: str, process: int) -> Any:
    """Returns the file system of a bucket, which exists.

    Raises:
      UserError: the bucket does not exist, cannot be reached, or may not be read.
    """
    address = f"{scheme}//{bucket}"
    failures.check_installed(address)
    fs = _open_gs() if scheme == "gs:" else _open_s3()
    try:
        versions.list_one(fs, bucket)  # the permission to list is needed anyway, others are not
    except FileNotFoundError:
        raise UserError(f"the bucket {address} does not exist; create it, or correct its name") from None
    except Exception as error:
        problem = failures.describe(error, address)
        if problem is None:
            raise
        raise UserError(problem.message) from error
    return fs


def _open_gs() -> Any:
    import aiohttp
    from gcsfs.core import GCSFileSystem

    token = "anon" if os.environ.get("STORAGE_EMULATOR_HOST") else None  # an emulator knows no credentials
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of errors that it also raises
    # By default gcsfs waits forever for a server that has stopped to answer; s3fs waits for a minute.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    options = {"use_listings_cache": False, "skip_instance_cache": True}
    return GCSFileSystem(token=token, requests_timeout=timeout, **options)


def _open_s3() -> Any:
    from s3fs import S3FileSystem

    return S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
