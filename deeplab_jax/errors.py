"""The exceptions that the command knows: each ends it with one line and an exit code of its own."""


class UserError(Exception):
    """Something outside the code is wrong (a file, a folder, a config, a disk): exit code 1.

    The message is one line, names the thing, and says what to do about it.
    """


class Preempted(Exception):
    """The run was told to end (SIGTERM), has saved everything, and the same command continues it: exit code 75."""

    EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
