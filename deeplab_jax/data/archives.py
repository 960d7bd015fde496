"""Fetching and unpacking archives: resumable, verified, and never outside their folder."""

import hashlib
import http.client
import lzma
import os
import pathlib
import tarfile
import urllib.error
import urllib.request
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


def download(url: str, path: pathlib.Path, *, md5: str, progress: Progress, timeout: int | float = 60) -> None:
    """Fetches a file, continuing a part that is there; it gets its name only when the checksum is right.

    Args:
      url: http(s) address; the server may or may not support ranges.
      path: the file to be.
      md5: of the whole file, in hex, as its publisher gives it.
      progress: shows the bytes.
      timeout: seconds without an answer before giving up.

    Raises:
      UserError: no connection, or a wrong checksum (the part is removed).
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.exists() else 0
    total = None
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            resumed = response.status == 206
            total = int(response.headers.get("Content-Length", 0)) + (start if resumed else 0)
            task = progress.add_task(f"download {path.name}", total=total or None, completed=start if resumed else 0)
            with part.open("ab" if resumed else "wb") as file:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    progress.advance(task, len(chunk))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part is whole already
            raise UserError(
                f"{url} answers {error.code} {error.reason}; fetch it yourself and pass --source FILE"
            ) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise UserError(
            f"{url} cannot be reached ({getattr(error, 'reason', error)}); run again to continue, or fetch it yourself "
            "and pass --source FILE"
        ) from None
    if total and part.stat().st_size < total:
        raise UserError(f"{url} broke off; run again to continue")
    if file_md5(part) != md5:
        part.unlink()
        raise UserError(f"{url} has a wrong checksum (md5 is not {md5}); the download was removed, run again")
    os.replace(part, path)


def file_md5(path: pathlib.Path) -> str:
    """The MD5 of a file, in hex."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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
