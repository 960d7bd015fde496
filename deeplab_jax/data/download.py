"""Fetching files over the network: resumable, verified, and one process at a time."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import BinaryIO

from rich.progress import Progress

from deeplab_jax.errors import UserError

_CHUNK = 1 << 20
_DIGEST = re.compile(r"(md5|sha256|sha384):([0-9a-f]{8,96})")


def download(
    url: str,
    path: pathlib.Path,
    *,
    digest: str,
    otherwise: str,
    progress: Progress,
    size: int | None = None,
    timeout: int | float = 60,
) -> None:
    """Fetches a file, continuing a part that is there; it gets its name only when the checksum is right.

    The part is `<name>.part`, beside the file. A process locks it while it writes: another one that wants the same file
    waits, and then finds it there.

    Args:
      url: http(s) address; the server may or may not support ranges.
      path: the file to be.
      digest: of the whole file, as `has_digest` takes it.
      otherwise: ends the message of an error: how to get at the file without this download.
      progress: shows the bytes.
      size: of the whole file in bytes, if it is known.
      timeout: seconds without an answer before giving up.

    Raises:
      UserError: no connection (the part stays, to be continued), another size or checksum (the part is removed), or a
        folder that cannot be written.
    """
    part = path.with_name(path.name + ".part")
    task = progress.add_task(f"download {path.name}", total=size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part, lambda: progress.update(task, description=f"wait for {path.name}")) as file:
            if path.is_file() and has_digest(path, digest):  # another process has fetched it meanwhile
                return
            for received, total in _receive(url, file, size=size, otherwise=otherwise, timeout=timeout):
                progress.update(task, completed=received, total=total)
            file.flush()
            os.fsync(file.fileno())
            if not has_digest(part, digest):
                file.truncate(0)
                raise UserError(f"{url} has a wrong checksum (not {digest}); the download was removed, run again")
            os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; check the folder and the disk's free space, and run again"
        ) from None


def has_digest(path: pathlib.Path, digest: str) -> bool:
    """Whether a file has a digest: `md5:`, `sha256:` or `sha384:` and its hex digits, of which the first 8 or more do.

    Eight digits are what PyTorch puts into the names of its files; they tell damage, not forgery.
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ValueError(f"{digest!r} is no digest")
    return file_digest(path, match[1]).startswith(match[2])


def file_digest(path: pathlib.Path, algorithm: str = "sha256") -> str:
    """The digest of a file in hex, by the name of its algorithm."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def _locked(part: pathlib.Path, on_wait: Callable[[], None]) -> Iterator[BinaryIO]:
    """The part, opened at its end and held by this process alone; an empty one is removed afterwards."""
    while True:
        with part.open("ab") as file:
            # Some network file systems cannot lock: then the checksum judges what two processes wrote.
            with contextlib.suppress(OSError):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    on_wait()
                    fcntl.flock(file, fcntl.LOCK_EX)
            # The one that held it has renamed or removed it: what was waited for is not the file of that name any more.
            try:
                if not os.path.samestat(os.fstat(file.fileno()), part.stat()):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield file
            finally:
                file.flush()
                if os.fstat(file.fileno()).st_size == 0:
                    part.unlink(missing_ok=True)
            return


def _receive(
    url: str, file: BinaryIO, *, size: int | None, otherwise: str, timeout: int | float
) -> Iterator[tuple[int, int | None]]:
    """Appends what a part lacks, or writes it anew if the server cannot continue; yields bytes had and bytes in all."""
    received = file.tell()
    if received == size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={received}-"} if received else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and received:  # nothing lies beyond the part: it is whole, or the checksum tells
            return
        raise UserError(f"{url} answers {error.code} {error.reason}; {otherwise}") from None
    except (http.client.HTTPException, OSError) as error:
        raise _unreachable(url, error, otherwise) from None
    with response:
        if response.status != 206:
            file.truncate(0)
            received = 0
        announced = None if response.length is None else received + response.length
        total = size if announced is None else announced
        while chunk := _read(response, url, otherwise):
            received += len(chunk)
            if size is not None and (received > size or total != size):
                file.truncate(0)
                raise UserError(f"{url} is not of {size} bytes: another file lies there now; {otherwise}")
            file.write(chunk)
            yield received, total
    if total is not None and received < total:
        raise UserError(f"{url} broke off; run again to continue")


def _read(response: http.client.HTTPResponse, url: str, otherwise: str) -> bytes:
    try:
        return response.read1(_CHUNK)  # what has come is kept when the rest does not
    except (http.client.HTTPException, OSError) as error:
        raise _unreachable(url, error, otherwise) from None


def _unreachable(url: str, error: Exception, otherwise: str) -> UserError:
    reason = getattr(error, "reason", None) or error
    return UserError(f"{url} cannot be reached ({reason}); run again to continue, or {otherwise}")
