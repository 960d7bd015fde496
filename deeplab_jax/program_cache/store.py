"""The folder of compiled programs."""

import contextlib
import hashlib
import logging
import os
import pathlib
import stat
import tempfile

logger = logging.getLogger(__name__)

#: Environment variable that turns the cache off if it is `off`.
SWITCH = "DEEPLAB_JAX_PROGRAM_CACHE"

#: Size of the folder in bytes. Beyond it, the entries that were not used for the longest time are removed.
LARGEST = 2 << 30

_DIGEST_BYTES = 32
_SUFFIX = ".program"
_active: "Store | None" = None


class Store:
    """Entries of bytes by name, in a folder. Several processes may use it at the same time.

    Loading a program runs the machine code in it, so the folder must belong to this user alone. An entry starts with
    its digest; a damaged one counts as missing and is removed.

    Args:
      folder: the folder; it is created with the first entry.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        """Returns an entry, or None if it is missing, damaged, or may have been written by someone else."""
        path = self._path(name)
        try:
            if not self._is_private():
                return None
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != digest:
            logger.debug("%s is damaged; it will be written again", path)
            self.remove(name)
            return None
        return payload

    def write(self, name: str, payload: bytes) -> None:
        """Writes an entry. Readers see all of it or nothing. A folder that cannot be written is left as it is."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_private():
                logger.debug("%s is not used: others can write to it", self._folder)
                return
            handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(payload).digest() + payload)
                os.replace(temporary, self._path(name))
            except BaseException:
                os.unlink(temporary)
                raise
            self._prune()
        except OSError as error:
            logger.debug("cannot write to %s: %s", self._folder, error)

    def remove(self, name: str) -> None:
        """Removes an entry, if it exists."""
        with contextlib.suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}{_SUFFIX}"

    def _is_private(self) -> bool:
        if not hasattr(os, "getuid"):
            return True
        status = self._folder.stat()
        return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)

    def _prune(self) -> None:
        entries = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # another process removes entries, too
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= LARGEST:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size


def enable(folder: str | os.PathLike[str]) -> None:
    """Keeps the programs of this process in a folder, unless DEEPLAB_JAX_PROGRAM_CACHE is `off`."""
    global _active
    _active = None if os.environ.get(SWITCH) == "off" else Store(pathlib.Path(folder))


def disable() -> None:
    """Keeps no programs of this process from now on."""
    global _active
    _active = None


def active() -> Store | None:
    """Returns the store of this process, if it has one."""
    return _active
