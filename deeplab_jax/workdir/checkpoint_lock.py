"""Locks on single checkpoints, so that a training does not delete one while another process reads it.

A reader holds a shared lock on the digests of a checkpoint; a training deletes only what it can lock exclusively. The
operating system releases a lock when its process ends. On a disk without locks, everything counts as unlocked.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import IO

from deeplab_jax.files import DIGESTS_FILE


def lock_for_reading(folder: pathlib.Path) -> IO[bytes] | None:
    """Locks a checkpoint until the returned file is closed; None if a training deletes it or has done so.

    Raises:
      OSError: the digests cannot be opened though the folder exists: the checkpoint is damaged.
    """
    try:
        file = (folder / DIGESTS_FILE).open("rb")
    except FileNotFoundError:
        if folder.is_dir():  # a training renames what it deletes
            raise
        return None
    is_locked = _lock(file, exclusive=False)
    try:
        is_current = os.path.samestat(os.fstat(file.fileno()), (folder / DIGESTS_FILE).stat())
    except FileNotFoundError:
        is_current = False
    if is_locked and is_current:
        return file
    file.close()
    return None


@contextlib.contextmanager
def try_lock_for_deletion(folder: pathlib.Path) -> Iterator[bool]:
    """Locks a checkpoint that is about to be deleted; False if another process reads it."""
    try:
        file = (folder / DIGESTS_FILE).open("r+b")
    except OSError:  # damaged, so nobody reads it
        yield True
        return
    with file:
        yield _lock(file, exclusive=True)


def _lock(file: IO[bytes], *, exclusive: bool) -> bool:
    if os.name != "posix":
        return True
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)  # or the disk has no locks
    return True
