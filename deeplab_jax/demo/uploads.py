"""The folder of a demo page, with the images of its visitors. It goes when the page ends, however it ends."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

_PREFIX = "deeplab_jax_demo_"
_LOCK = "page.lock"
_FILES = "files"


@contextlib.contextmanager
def open_folder() -> Iterator[pathlib.Path]:
    """Creates a folder for a page and yields the place for uploads and results in it. Deletes it at the end.

    First deletes the folders of pages that were killed. A page locks a file in its folder, and the operating system
    releases the lock with the process, so the folder of a running page is never touched.
    """
    remove_abandoned()
    new = pathlib.Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
    with (new / _LOCK).open("w") as lock:
        with contextlib.suppress(OSError):  # a disk without locks: nobody removes folders there
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Only now it gets the name that others look for.
        folder = new.rename(new.with_name(new.name.removeprefix(".")))
        try:
            (folder / _FILES).mkdir()
            yield folder / _FILES
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned() -> None:
    """Deletes the folders that killed pages of this user left in the folder for temporary files."""
    for folder in pathlib.Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another page removes it, or another user owns it
            status = folder.lstat()
            is_mine = status.st_uid == os.geteuid() and folder.is_dir() and not folder.is_symlink()
            if is_mine and not _is_locked(folder / _LOCK):
                shutil.rmtree(folder)


def find_upload(files: pathlib.Path, path: str | None) -> pathlib.Path | None:
    """Returns the file that a visitor names, or None if it is not a regular file in the page's folder.

    A visitor can send any text in place of the path that an upload returned. Every other file of the server gives the
    same answer as a missing one.

    Args:
      files: the folder that `open_folder` yielded.
      path: what the visitor sent.
    """
    if path is None:
        return None
    try:
        resolved = pathlib.Path(path).resolve(strict=True)  # follows links, so one that leads outside is outside
    except (OSError, ValueError, RuntimeError):  # missing, a zero byte, a circle of links
        return None
    return resolved if resolved.is_relative_to(files.resolve()) and resolved.is_file() else None


def _is_locked(path: pathlib.Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False  # the page was killed while it deleted the folder
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False
