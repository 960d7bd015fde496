"""Downloading files: resumable, verified, and by one process at a time."""

import contextlib
import fcntl
import http.client
import logging
import os
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import BinaryIO

from deeplab_jax import progress
from deeplab_jax.errors import UserError
from deeplab_jax.files import file_digest

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_DIGEST = re.compile(r"(md5|sha1|sha256|sha384):([0-9a-f]{8,96})")


def download(
    url: str,
    path: pathlib.Path,
    *,
    digest: str,
    otherwise: str,
    size: int | None = None,
    timeout: int | float = 60,
) -> None:
    """Downloads a file, continuing an earlier attempt. The file gets its name once its checksum is verified.

    Until then the received bytes are in `<name>.part` next to it. The process that writes this file locks it; another
    process that needs the same file waits and then finds it complete.

    Args:
      url: http(s) address. The server does not have to support ranges.
      path: where to save the file.
      digest: digest of the whole file, see `has_digest`.
      otherwise: ends error messages: how to get the file without this download.
      size: size of the whole file in bytes, if known.
      timeout: seconds without data after which to give up.

    Raises:
      UserError: the server cannot be reached (the part is kept, to be continued), the size or the checksum differs (the
        part is removed), or the folder cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with progress.bar(f"download {path.name}", size, is_bytes=True) as bar, _lock(part) as file:
            if path.is_file() and has_digest(path, digest):  # another process has downloaded it in the meantime
                return
            for received, total in _receive(url, file, size=size, otherwise=otherwise, timeout=timeout):
                bar.update(completed=received, total=total)
            file.flush()
            os.fsync(file.fileno())
            if not has_digest(part, digest):
                file.truncate(0)
                raise UserError(
                    f"{url} has the wrong checksum (expected {digest}); the download was removed, run the command again"
                )
            os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; check the folder and the disk's free space, and run the "
            "command again"
        ) from None


def has_digest(path: pathlib.Path, digest: str) -> bool:
    """Whether a file has a digest.

    Args:
      path: the file.
      digest: `md5:`, `sha1:`, `sha256:` or `sha384:`, followed by at least the first 8 hex digits. PyTorch puts 8
        digits into the names of its files; they detect damage, not forgery.
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ValueError(f"{digest!r} is not a digest")
    return file_digest(path, match[1]).startswith(match[2])


@contextlib.contextmanager
def _lock(part: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens the part at its end and locks it. Removes it afterwards if it is empty."""
    is_waiting = False
    while True:
        with part.open("ab") as file:
            # Some network file systems cannot lock. Then the checksum decides about what two processes wrote.
            with contextlib.suppress(OSError):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not is_waiting:
                        logger.info("Waiting for another process that downloads %s", part.stem)
                    is_waiting = True
                    fcntl.flock(file, fcntl.LOCK_EX)
            # If the process that held the lock renamed or removed the file, this is no longer the file of this name.
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
    """Appends the missing bytes, or starts over if the server cannot continue. Yields bytes received and total."""
    received = file.tell()
    if received == size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={received}-"} if received else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and received:  # nothing follows the part: it is complete, or its checksum differs
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
                raise UserError(f"{url} does not have {size} bytes, so it is another file now; {otherwise}")
            file.write(chunk)
            yield received, total
    if total is not None and received < total:
        raise UserError(f"{url} was interrupted; run the command again to continue")


def _read(response: http.client.HTTPResponse, url: str, otherwise: str) -> bytes:
    try:
        return response.read1(_CHUNK)  # keeps the bytes received before a failure
    except (http.client.HTTPException, OSError) as error:
        raise _unreachable(url, error, otherwise) from None


def _unreachable(url: str, error: Exception, otherwise: str) -> UserError:
    reason = getattr(error, "reason", None) or error
    return UserError(f"{url} cannot be reached ({reason}); run the command again to continue, or {otherwise}")
