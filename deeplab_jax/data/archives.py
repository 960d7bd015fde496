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

# What damaged, foreign and encrypted archives raise; a full disk is an OSError too.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError,
)  # fmt: skip


def extract(archive: pathlib.Path, folder: pathlib.Path, *, wanted: Callable[[str], bool], progress: Progress) -> None:
    """Unpacks the regular files of a tar or zip whose names are `wanted`, and nothing else.

    Links, devices, absolute names and names with `..` are never followed or written.

    Raises:
      UserError: the archive is damaged or of another kind.
    """
    task = progress.add_task(f"unpack {archive.name}", total=None)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for entry in file.infolist():
                    if not entry.is_dir() and _inside(entry.filename) and wanted(entry.filename):
                        _write(folder / entry.filename, file.read(entry))
                        progress.advance(task)
        else:
            with tarfile.open(archive, "r:*") as file:
                for member in file:
                    if member.isreg() and _inside(member.name) and wanted(member.name):
                        _write(folder / member.name, file.extractfile(member).read())
                        progress.advance(task)
                while file.fileobj.read(_CHUNK):  # gzip compares its checksum when it reaches its end
                    pass
    except _DAMAGED as error:
        raise UserError(f"archive {archive} cannot be unpacked: {error}") from None


def _inside(name: str) -> bool:
    path = pathlib.PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _write(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
