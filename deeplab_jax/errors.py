"""The exceptions that `deeplab-jax` reports as one line, each with its exit code, and the wording that they share."""

import difflib
import errno
import re
from collections.abc import Iterable


class UserError(Exception):
    """A mistake outside the code: in a file, a folder, a config or a data set, or a full disk.

    The message is one line that names what is wrong and says how to fix it.
    """

    EXIT_CODE = 1


class UsageError(Exception):
    """An invalid command line. Like `UserError`, but raised only by the command."""

    EXIT_CODE = 2


class Preempted(Exception):
    """A signal stopped training, an evaluation or a prediction, which has saved what it has done.

    Attributes:
      exit_code: one of `EXIT_CODES`, by the signal.
      resume: how to continue.
    """

    EXIT_CODE = 75  # EX_TEMPFAIL in sysexits.h: try again
    EXIT_CODES = {"SIGTERM": EXIT_CODE, "SIGINT": 130, "SIGHUP": 129}  # the others as shells report them

    RESUME = "run the same command again to resume"

    def __init__(self, message: str, exit_code: int = EXIT_CODE, resume: str = RESUME):
        super().__init__(message)
        self.exit_code, self.resume = exit_code, resume


_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out of memory|bad_alloc|insufficient memory", re.IGNORECASE)

_PERMISSIONS = "check the permissions of the file and of its folder"
_SPACE = "free some space or choose another disk"

#: How to fix an error of the operating system, by its number.
_OS_FIXES = {
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: "choose a folder on a disk that is not read-only",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "choose a disk that can store files of this size",
    errno.ENOENT: "check the path and the folder",
    errno.ENOTDIR: "a part of the path is a file where a folder is expected",
    errno.EISDIR: "it is a folder where a file is expected",
    errno.EEXIST: "choose another name or remove it",
    errno.ENOTEMPTY: "choose another name or remove it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links point at each other",
    errno.EMFILE: "raise the limit of open files with `ulimit -n`",
    errno.ENFILE: "close other programs, or raise the limit of open files of this machine",
    errno.EIO: "the disk reports an error; check it, or choose another one",
    errno.ESTALE: "the network drive has lost the file; mount it again",
    errno.ETXTBSY: "another program uses the file; close it",
    errno.EBUSY: "another program uses the file; close it",
}


def from_os_error(error: OSError, action: str | None = None) -> UserError:
    """Translates an error of the operating system into one line with its fix.

    Args:
      error: the error.
      action: what failed, such as "cannot write masks/a.png" (default: "cannot access", with the file of the error).

    Returns:
      The error to raise.
    """
    if action is None:
        files = [str(file) for file in (error.filename, error.filename2) if file is not None]
        action = f"cannot access {' and '.join(files)}" if files else "cannot read or write a file"
    fix = _OS_FIXES.get(error.errno)
    return UserError(f"{action}: {error.strerror or error}" + (f"; {fix}" if fix else ""))


def is_file_error(error: OSError) -> bool:
    """Returns True if an error of the operating system is about a file or a disk, for `from_os_error`."""
    return error.filename is not None or error.errno in _OS_FIXES


def is_out_of_memory(error: Exception) -> bool:
    """Returns True if the memory of the machine or of a device was too small, also in XLA or OpenCV."""
    # XLA raises RuntimeErrors; those of other libraries have types of compiled modules.
    is_native = isinstance(error, RuntimeError) or type(error).__module__.partition(".")[0] in ("cv2", "jaxlib")
    return isinstance(error, MemoryError) or (is_native and _OUT_OF_MEMORY.search(str(error)) is not None)


def suggest(name: str, known: Iterable[object]) -> str:
    """Ends an error message about an unknown name.

    Args:
      name: the name that was not found.
      known: the names that exist. Numbers that look alike do not mean the same, so none of them is suggested.

    Returns:
      `; did you mean X?` with the closest known name, or `; choose from A, B, C` if none is close.
    """
    known = list(known)
    closest = difflib.get_close_matches(name, [other for other in known if isinstance(other, str)], n=1)
    return f"; did you mean {closest[0]}?" if closest else f"; choose from {', '.join(map(str, known))}"
