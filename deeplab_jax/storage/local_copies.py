"""Copies of objects on the local disk: scratch folders of a process, and a cache that stays.

Both are in the cache folder. The next process removes the scratch folders of processes that were killed.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO

from deeplab_jax.errors import UserError, from_os_error
from deeplab_jax.storage import client
from deeplab_jax.storage.bucket_path import BucketPath, is_bucket_address

logger = logging.getLogger(__name__)

#: Largest size of the cache if $DEEPLAB_JAX_CACHE_GB is not set.
DEFAULT_GB = 100
_LOCK = ".lock"

_in_use: dict[pathlib.Path, IO[bytes]] = {}  # cached folders that this process reads, with their locks


def cache_folder() -> pathlib.Path:
    """Returns the folder for downloads: $DEEPLAB_JAX_CACHE, or `deeplab_jax` in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("DEEPLAB_JAX_CACHE"):
        return pathlib.Path(chosen).expanduser()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "deeplab_jax"


def program_folder(name: str) -> pathlib.Path | None:
    """Returns the folder for programs of one kind, in the cache folder or in $JAX_COMPILATION_CACHE_DIR.

    Returns:
      The folder; None if that variable is empty, which turns caches of programs off.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen is None or is_bucket_address(chosen):  # JAX alone keeps programs in buckets
        return cache_folder() / name
    return pathlib.Path(chosen) / name if chosen else None


@contextlib.contextmanager
def scratch_folder() -> Iterator[pathlib.Path]:
    """Creates a folder for the duration of the block. If the process is killed, the next one removes it.

    Raises:
      UserError: the cache folder cannot be written.
    """
    parent = cache_folder() / "scratch"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with (parent / _LOCK).open("ab") as turn:  # or another process removes the folder before it is locked
            fcntl.flock(turn, fcntl.LOCK_EX)
            _remove_abandoned(parent)
            folder = pathlib.Path(tempfile.mkdtemp(dir=parent))
            lock = (folder / _LOCK).open("wb")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise from_os_error(error, f"cannot create a folder in {parent}") from None
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def local_output(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path for a library that writes to the local disk: `path` itself, or a stand-in if it is in a bucket.

    The file or folder that is written there is uploaded at the end of the block, but not if the block fails.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    with scratch_folder() as folder:
        written = folder / path.name
        yield written
        if written.is_file():
            client.upload([(written, path)])
        else:
            files = [file.relative_to(written) for file in written.rglob("*") if file.is_file()]
            client.upload([(written / file, path / file) for file in files])


@contextlib.contextmanager
def local_input(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path for a library that reads from the local disk: `path` itself, or a copy if it is in a bucket.

    Raises:
      UserError: there is no such file or folder.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    names = [entry.name for entry in client.list_files(path)]
    with scratch_folder() as folder:
        copy = folder / path.name
        if names:
            client.download([(path / name, copy / name) for name in names])
        elif path.is_file():
            client.download([(path, copy)])
        else:
            raise UserError(f"{path} does not exist")
        yield copy


def cached_files(folder: BucketPath, names: list[str]) -> pathlib.Path:
    """Downloads files of a folder, unless the cache has them. They stay in the cache while this process runs.

    Args:
      folder: the folder.
      names: the files, all directly in the folder.

    Returns:
      The local folder of the files.

    Raises:
      UserError: a file does not exist, or there is no room for them.
    """
    entries = {entry.name: entry for entry in client.list_folder(folder)}
    for name in names:
        if name not in entries:
            raise UserError(f"{folder / name} is missing; prepare the data set again, or restore the file from a copy")
    # A file that is written again under the same name is another version.
    version = json.dumps([str(folder), [(name, entries[name].size, entries[name].modified) for name in names]])
    target = cache_folder() / "buckets" / hashlib.sha256(version.encode()).hexdigest()[:24]
    if target in _in_use:
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(_lock_file(target).open("ab"))
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)  # nobody deletes them
                if all((target / name).exists() for name in names):
                    break
                fcntl.flock(lock, fcntl.LOCK_EX)  # waits while another process downloads them
                _download_missing(folder, {name: entries[name].size for name in names}, target)
            os.utime(_lock_file(target))
            stack.pop_all()  # the lock is held until this process ends
    except OSError as error:
        raise from_os_error(error, f"cannot copy {folder} to {target}") from None
    _in_use[target] = lock
    return target


def _download_missing(folder: BucketPath, sizes: dict[str, int], target: pathlib.Path) -> None:
    missing = [name for name in sizes if not (target / name).exists()]
    if not missing:
        return
    size = sum(sizes[name] for name in missing)
    _make_room(target, size, str(folder))
    target.mkdir(exist_ok=True)
    logger.info("downloading %d files of %s (%.3g GB) to %s", len(missing), folder, size / 1e9, target)
    client.download([(folder / name, target / f"{name}.part") for name in missing])
    for name in missing:
        (target / f"{name}.part").rename(target / name)


def _make_room(target: pathlib.Path, size: int, name: str) -> None:
    """Deletes what was not used for the longest time until files of `size` bytes fit."""
    budget = _budget()
    others = [folder for folder in target.parent.iterdir() if folder.is_dir() and folder != target]
    sizes = {folder: _size(folder) for folder in others}
    for folder in sorted(others, key=_last_use):
        if sum(sizes.values()) + size <= budget and shutil.disk_usage(target).free > size:
            return
        with contextlib.suppress(OSError), _lock_file(folder).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a process reads the files
            shutil.rmtree(folder)
            del sizes[folder]
    used = sum(sizes.values())
    if used + size > budget:
        raise UserError(
            f"{name} needs {size / 1e9:.3g} GB locally, but of the {budget / 1e9:.3g} GB that the cache may have, "
            f"{used / 1e9:.3g} are in use; set DEEPLAB_JAX_CACHE_GB to more, or mount the bucket as a folder"
        )
    free = shutil.disk_usage(target).free
    if free < size:
        raise UserError(
            f"no room for a copy of {name} in {target.parent}: it needs {size / 1e9:.3g} GB, but {free / 1e9:.3g} GB "
            "are free; free some space, or set DEEPLAB_JAX_CACHE to a folder on another disk"
        )


def _budget() -> float:
    text = os.environ.get("DEEPLAB_JAX_CACHE_GB") or str(DEFAULT_GB)
    try:
        return float(text) * 1e9
    except ValueError:
        raise UserError(f"DEEPLAB_JAX_CACHE_GB={text} is not a number of gigabytes") from None


def _lock_file(target: pathlib.Path) -> pathlib.Path:
    return target.with_suffix(_LOCK)


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _last_use(folder: pathlib.Path) -> float:
    try:
        return _lock_file(folder).stat().st_mtime
    except OSError:  # another process has just removed it
        return 0.0


def _remove_abandoned(parent: pathlib.Path) -> None:
    for folder in filter(pathlib.Path.is_dir, parent.iterdir()):
        with contextlib.suppress(OSError), (folder / _LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the process of the folder runs
            shutil.rmtree(folder)
