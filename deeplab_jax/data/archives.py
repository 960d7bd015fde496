"""Unpacking archives safely: nothing is written outside the target folder, and the cost of an archive is bounded."""

import bz2
import contextlib
import gzip
import io
import lzma
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

from deeplab_jax import budget, progress
from deeplab_jax.errors import UserError

_CHUNK = 1 << 20
_FILE_COST = 4096  # bytes that even an empty file takes
_XZ_MEMORY = 256 << 20  # bytes; `xz -9` needs 65 MB

# Exceptions of damaged, unknown and encrypted archives. A full disk is an OSError too.
DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError,
    OverflowError, MemoryError,
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

    def unpack(name: str, content: io.IOBase, left: budget.Budget) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        left.spend(_FILE_COST)
        with path.open("wb") as file:
            while chunk := content.read(_CHUNK):
                left.spend(len(chunk))
                file.write(chunk)
        bar.advance()

    try:
        left = budget.Budget(f"archive {archive}", budget.file_size(archive), budget.ARCHIVE)
        with progress.bar(f"unpack {archive.name}") as bar:
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, lambda name: _is_inside(name) and is_needed(name), left, unpack)
            else:
                for member, content in tar_members(archive, left):
                    if _is_inside(member.name) and is_needed(member.name):
                        unpack(member.name, content, left)
    except DAMAGED as error:
        raise UserError(f"archive {archive} cannot be unpacked: {' '.join(str(error).split())}") from None


def tar_members(archive: pathlib.Path, left: budget.Budget) -> Iterator[tuple[tarfile.TarInfo, io.IOBase]]:
    """Yields the regular files of a tar archive in order, compressed by gzip, bzip2, xz or not.

    Args:
      archive: the file.
      left: everything that is read is counted, so headers and skipped files are not free.

    Yields:
      A member, and its content, which must be read before the next one.

    Raises:
      UserError: the archive expands to an implausible size.
      OSError, tarfile.TarError, ...: it is damaged, see `DAMAGED`.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(archive.open("rb"))
        stream = _CountedStream(_decompressed(file, stack), left)
        tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
        while (member := tar.next()) is not None:
            tar.members = []  # the members of a huge archive would fill the memory
            if member.isreg():
                yield member, tar.extractfile(member)
        while stream.read(_CHUNK):  # gzip verifies its checksum at the end of the file
            pass


def read_member(member: tarfile.TarInfo, content: io.IOBase, left: budget.Budget) -> bytes:
    """Reads what `tar_members` yielded into memory, after counting its size."""
    left.spend(member.size)
    return b"".join(iter(lambda: content.read(_CHUNK), b""))


def read_zip_entry(file: zipfile.ZipFile, name: str, left: budget.Budget) -> bytes:
    """Reads an entry of a zip archive into memory, after counting its size.

    Raises:
      KeyError: there is no such entry.
      UserError: it is implausibly large.
      zipfile.BadZipFile, ...: it is damaged, see `DAMAGED`.
    """
    entry = file.getinfo(name)
    left.spend(entry.file_size)
    with _open_entry(file, entry) as content:
        return content.read()


def _unpack_zip(archive: pathlib.Path, is_needed, left: budget.Budget, unpack) -> None:
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            if not entry.filename:
                raise zipfile.BadZipFile("an entry has no name")
            if not entry.is_dir() and is_needed(entry.filename):
                with _open_entry(file, entry) as content:
                    unpack(entry.filename, content, left)


def _open_entry(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> io.IOBase:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile decompresses whole chunks of the others, which can be a million times larger
        raise zipfile.BadZipFile("its compression is neither deflate nor none; pack it again")
    return file.open(entry)


def _is_inside(name: str) -> bool:
    path = pathlib.PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _decompressed(file: io.IOBase, stack: contextlib.ExitStack) -> io.IOBase:
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return stack.enter_context(gzip.open(file))
    if start.startswith(b"BZh"):
        return stack.enter_context(bz2.open(file))
    return io.BufferedReader(_XzReader(file)) if start == b"\xfd7zXZ\0" else file


class _CountedStream:
    """The file object for `tarfile`. Counts the bytes, only moves forward, and refuses huge headers."""

    def __init__(self, file: io.IOBase, left: budget.Budget):
        self._file, self._left, self._position = file, left, 0

    def read(self, size: int) -> bytes:
        if size > budget.HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        content = self._file.read(size)
        self._position += len(content)
        self._left.spend(len(content))
        return content

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("its members are not in order")
        while self._position < position and self.read(min(_CHUNK, position - self._position)):
            pass


class _XzReader(io.RawIOBase):
    """Decompresses xz with bounded memory, which `lzma.open` does not offer: a header can claim four gigabytes."""

    def __init__(self, file: io.IOBase):
        self._file, self._decoder = file, lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while True:
            if self._decoder.eof:
                content = (self._decoder.unused_data or self._file.read(_CHUNK)).lstrip(b"\0")  # padding
                if not content:
                    return 0
                self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            else:
                content = self._file.read(_CHUNK) if self._decoder.needs_input else b""
                if not content and self._decoder.needs_input:
                    raise EOFError("the compressed data ends too early")
            if produced := self._decoder.decompress(content, len(buffer)):
                buffer[: len(produced)] = produced
                return len(produced)
