"""Unpacking archives safely: nothing is written outside the target folder."""

import lzma
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable

from deeplab_jax import progress
from deeplab_jax.errors import UserError

_CHUNK = 1 << 20

# Images and masks are compressed already. An archive that grows more than this was built to fill the disk.
_MAX_EXPANSION = 100
_ALWAYS_ALLOWED = 1 << 30  # bytes, for small archives
_FILE_COST = 4096  # bytes that even an empty file takes

# Exceptions of damaged, unknown and encrypted archives. A full disk is an OSError too.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError,
)  # fmt: skip


def extract(archive: pathlib.Path, folder: pathlib.Path, *, is_needed: Callable[[str], bool]) -> None:
    """Unpacks the regular files of a tar or zip archive.

    Links, devices, absolute names and names with `..` are skipped.

    Args:
      archive: the file.
      folder: where to unpack it.
      is_needed: whether to unpack the file of this name.

    Raises:
      UserError: the archive is damaged, of another kind, or expands to an implausible size.
    """
    budget = _Budget(archive)
    try:
        with progress.bar(f"unpack {archive.name}") as bar:
            unpack = _unpack_zip if zipfile.is_zipfile(archive) else _unpack_tar
            unpack(archive, folder, lambda name: _is_inside(name) and is_needed(name), budget, bar)
    except _DAMAGED as error:
        raise UserError(f"archive {archive} cannot be unpacked: {' '.join(str(error).split())}") from None


def _unpack_zip(archive: pathlib.Path, folder: pathlib.Path, is_needed, budget: "_Budget", bar: progress.Bar) -> None:
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            if not entry.filename:
                raise zipfile.BadZipFile("an entry has no name")
            if not entry.is_dir() and is_needed(entry.filename):
                with file.open(entry) as content:
                    budget.copy(content, folder / entry.filename)
                bar.advance()


def _unpack_tar(archive: pathlib.Path, folder: pathlib.Path, is_needed, budget: "_Budget", bar: progress.Bar) -> None:
    with tarfile.open(archive, "r:*") as file:
        for member in file:
            if member.isreg() and is_needed(member.name):
                budget.copy(file.extractfile(member), folder / member.name)
                bar.advance()
        while file.fileobj.read(_CHUNK):  # gzip verifies its checksum at the end of the file
            pass


def _is_inside(name: str) -> bool:
    path = pathlib.PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


class _Budget:
    """The number of bytes that an archive may still write. The sizes in its headers are not trusted."""

    def __init__(self, archive: pathlib.Path):
        self._archive = archive
        self._left = max(_ALWAYS_ALLOWED, _MAX_EXPANSION * archive.stat().st_size) if archive.exists() else 0

    def copy(self, content, path: pathlib.Path) -> None:
        """Writes the content of a file-like object to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._spend(_FILE_COST)
        with path.open("wb") as file:
            while chunk := content.read(_CHUNK):
                self._spend(len(chunk))
                file.write(chunk)

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise UserError(
                f"archive {self._archive} expands to more than {_MAX_EXPANSION} times its size, so it is probably not "
                "a data set; if it is, unpack it yourself and pass the folder"
            )
