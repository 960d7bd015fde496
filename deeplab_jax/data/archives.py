"""Unpacking archives, never outside their folder."""

import lzma
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable

from rich.progress import Progress

from deeplab_jax.errors import UserError

_CHUNK = 1 << 20

# Images and masks are compressed already: an archive that grows more than this was made to fill the disk.
_MOST_EXPANSION = 100
_ALWAYS_ALLOWED = 1 << 30  # bytes, for small archives
_FILE_COST = 4096  # bytes that an empty file takes too

# What damaged, foreign and encrypted archives raise; a full disk is an OSError too.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError,
)  # fmt: skip


def extract(archive: pathlib.Path, folder: pathlib.Path, *, wanted: Callable[[str], bool], progress: Progress) -> None:
    """Unpacks the regular files of a tar or zip whose names are `wanted`, and nothing else.

    Links, devices, absolute names and names with `..` are never followed or written.

    Raises:
      UserError: the archive is damaged or of another kind, or expands beyond measure.
    """
    budget = _Budget(archive)
    task = progress.add_task(f"unpack {archive.name}", total=None)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for entry in file.infolist():
                    if not entry.filename:
                        raise zipfile.BadZipFile("an entry has no name")
                    if not entry.is_dir() and _inside(entry.filename) and wanted(entry.filename):
                        with file.open(entry) as content:
                            budget.copy(content, folder / entry.filename)
                        progress.advance(task)
        else:
            with tarfile.open(archive, "r:*") as file:
                for member in file:
                    if member.isreg() and _inside(member.name) and wanted(member.name):
                        budget.copy(file.extractfile(member), folder / member.name)
                        progress.advance(task)
                while file.fileobj.read(_CHUNK):  # gzip compares its checksum when it reaches its end
                    pass
    except _DAMAGED as error:
        raise UserError(f"archive {archive} cannot be unpacked: {' '.join(str(error).split())}") from None


def _inside(name: str) -> bool:
    path = pathlib.PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


class _Budget:
    """How much an archive may still write; its headers are not believed."""

    def __init__(self, archive: pathlib.Path):
        self._archive = archive
        self._left = max(_ALWAYS_ALLOWED, _MOST_EXPANSION * archive.stat().st_size) if archive.exists() else 0

    def copy(self, content, path: pathlib.Path) -> None:
        """Writes what a file-like object holds."""
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
                f"archive {self._archive} expands to more than {_MOST_EXPANSION} times its size; it is no data set. If "
                "it is one all the same, unpack it yourself and pass the folder"
            )
