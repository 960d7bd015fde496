"""Paths in buckets with the interface of `pathlib`, so that code that reads and writes files needs no second version.

An object store is not a file system. A path is a folder if an object exists below it, so there is nothing to create and
an empty folder does not exist. A file appears when it is closed, whole or not at all: one upload replaces one object.
Nothing is renamed, and appending rewrites the object.
"""

import contextlib
import fnmatch
import io
import os
import pathlib
import re
import stat as stat_lib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from deeplab_jax.storage import client

_ADDRESS = re.compile(r"(gs|s3):/+", re.IGNORECASE)
_LOCAL = type(pathlib.Path())  # `pathlib.Path` itself cannot be subclassed before Python 3.12


def is_bucket_address(path: str | os.PathLike[str]) -> bool:
    """Returns True for an address of object storage, such as `gs://bucket/folder`."""
    return _ADDRESS.match(os.fspath(path)) is not None


class BucketPath(_LOCAL):
    """A file or folder in a bucket, such as `s3://bucket/runs/photos`.

    Pure operations (`/`, `parent`, `name`, `relative_to`, ...) are those of `pathlib`. Methods that have no meaning in
    a bucket raise `io.UnsupportedOperation`.
    """

    def __str__(self) -> str:
        scheme, *rest = self.parts or (".",)
        return f"{scheme}//{'/'.join(rest)}" if scheme in ("gs:", "s3:") else "/".join((scheme, *rest))

    __fspath__ = __str__

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        return type(self), tuple(self.parts)

    # ---- Reading ----

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Returns True if the path is a file or a folder."""
        return client.find_entry(self) is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Returns True if the path is an object."""
        entry = client.find_entry(self)
        return entry is not None and not entry.is_folder

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Returns True if objects exist below the path."""
        entry = client.find_entry(self)
        return entry is not None and entry.is_folder

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Returns the size in bytes and the time of the last change; other fields are 0."""
        entry = client.find_entry(self)
        if entry is None:
            raise FileNotFoundError(2, "No such file or folder", str(self))
        mode = stat_lib.S_IFDIR if entry.is_folder else stat_lib.S_IFREG
        return os.stat_result((mode, 0, 0, 1, 0, 0, entry.size, entry.modified, entry.modified, entry.modified))

    lstat = stat

    def iterdir(self) -> Iterator["BucketPath"]:
        """Yields the files and folders in a folder."""
        entries = client.list_folder(self)
        if not entries:
            raise FileNotFoundError(2, "No such folder", str(self))
        return (self / entry.name for entry in entries)

    def glob(self, pattern: str, **options: Any) -> Iterator["BucketPath"]:
        """Yields the files and folders in a folder whose names match a pattern, which names no subfolders."""
        if "/" in pattern or "**" in pattern:
            self._refuse("glob with subfolders")
        return (self / entry.name for entry in client.list_folder(self) if fnmatch.fnmatchcase(entry.name, pattern))

    def rglob(self, pattern: str, **options: Any) -> Iterator["BucketPath"]:
        """Yields the files below a folder whose names match a pattern."""
        names = (entry.name for entry in client.list_files(self))
        return (self / name for name in names if fnmatch.fnmatchcase(name.rpartition("/")[2], pattern))

    def read_bytes(self) -> bytes:
        """Reads a file with one request."""
        return client.read(self)

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.IOBase:
        """Opens a file, which is read whole when it is opened and written when it is closed."""
        kind = mode.replace("b", "").replace("t", "")
        if kind not in ("r", "w", "a", "x"):
            self._refuse(f"open with mode {mode!r}")
        if kind == "x" and self.exists():
            raise FileExistsError(17, "File exists", str(self))
        if kind == "r":
            file = io.BytesIO(client.read(self))
        else:
            file = _Upload(self)
            if kind == "a":
                with contextlib.suppress(FileNotFoundError):
                    file.write(client.read(self))
        return file if "b" in mode else _Text(file, encoding or "utf-8", errors, newline)

    # ---- Writing ----

    def write_bytes(self, data: bytes) -> int:
        """Writes a file with one upload."""
        client.write(self, bytes(data))
        return len(data)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Checks that the path can be a folder: its bucket exists, and the path is not a file."""
        entry = client.find_entry(self)
        if entry is not None and not (exist_ok and entry.is_folder):
            raise FileExistsError(17, "File exists", str(self))

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes a file."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(2, "No such file", str(self))
        client.delete([self])

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Writes an empty file, unless it exists."""
        if not self.exists():
            client.write(self, b"")
        elif not exist_ok:
            raise FileExistsError(17, "File exists", str(self))

    # ---- Paths have one form, there are no links, and nobody is at home in a bucket ----

    def absolute(self) -> "BucketPath":
        """Returns the path itself."""
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Returns the path itself."""
        return self

    def expanduser(self) -> "BucketPath":
        """Returns the path itself."""
        return self

    def is_absolute(self) -> bool:
        """Returns True."""
        return True

    def is_symlink(self) -> bool:
        """Returns False."""
        return False

    def samefile(self, other_path: str | os.PathLike[str]) -> bool:
        """Returns True if the paths are equal."""
        return str(self) == str(other_path)

    def _refuse(self, what: str) -> NoReturn:
        raise io.UnsupportedOperation(f"{self} is in a bucket, which has no {what}")


def _unsupported(name: str) -> Callable[..., NoReturn]:
    def method(self: BucketPath, *args: Any, **options: Any) -> NoReturn:
        self._refuse(name)

    return method


#: The other methods of `pathlib.Path` that would touch the local disk.
UNSUPPORTED = (
    "chmod", "copy", "copy_into", "group", "hardlink_to", "is_block_device", "is_char_device", "is_fifo",
    "is_junction", "is_mount", "is_socket", "lchmod", "link_to", "move", "move_into", "owner", "readlink", "rename",
    "replace", "rmdir", "symlink_to", "walk",
)  # fmt: skip
for _name in UNSUPPORTED:
    setattr(BucketPath, _name, _unsupported(_name))


class _Upload(io.BytesIO):
    """The content of a file that is uploaded when it is closed, but not if the `with` block fails."""

    def __init__(self, path: BucketPath):
        super().__init__()
        self._path, self.has_failed = path, False

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        self.has_failed = kind is not None
        self.close()

    def close(self) -> None:
        """Uploads the content."""
        if not self.closed:
            content = self.getvalue()
            super().close()
            if not self.has_failed:
                client.write(self._path, content)

    def __del__(self) -> None:
        """An abandoned file is not uploaded."""


class _Text(io.TextIOWrapper):
    """Text of an `_Upload` or of a file that is read."""

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is not None and isinstance(self.buffer, _Upload):
            self.buffer.has_failed = True
        self.close()
