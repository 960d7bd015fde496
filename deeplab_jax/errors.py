"""The exceptions that `deeplab-jax` reports as one line, each with its exit code."""

import difflib
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
    """A signal stopped training, which has saved its state. Running the same command again resumes it.

    Attributes:
      exit_code: one of `EXIT_CODES`, by the signal.
    """

    EXIT_CODE = 75  # EX_TEMPFAIL in sysexits.h: try again
    EXIT_CODES = {"SIGTERM": EXIT_CODE, "SIGINT": 130, "SIGHUP": 129}  # the others as shells report them

    def __init__(self, message: str, exit_code: int = EXIT_CODE):
        super().__init__(message)
        self.exit_code = exit_code


def suggest(name: str, known: Iterable[object]) -> str:
    """Ends an error message about an unknown name.

    Args:
      name: the name that was not found.
      known: the names that exist.

    Returns:
      `; did you mean X?` with the closest known name, or `; choose from A, B, C` if none is close.
    """
    names = [str(other) for other in known]
    closest = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {closest[0]}?" if closest else f"; choose from {', '.join(names)}"
