"""The exceptions that the command knows: each ends it with one line and an exit code of its own."""

import difflib


class UserError(Exception):
    """Something outside the code is wrong (a file, a folder, a config, a disk): exit code 1.

    The message is one line, names the thing, and says what to do about it.
    """


class Preempted(Exception):
    """The run was told to end (SIGTERM), has saved everything, and the same command continues it: exit code 75."""

    EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again


def suggest(name: str, known) -> str:
    """The end of an error message about a name that does not exist: the nearest one, or all there are."""
    known = [str(other) for other in known]
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; choose from {', '.join(known)}"
