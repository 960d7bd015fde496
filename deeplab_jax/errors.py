"""The one exception that a user's mistake raises: the command prints its text as one line and exits with 1."""


class UserError(Exception):
    """Something outside the code is wrong (a file, a folder, a config, a disk).

    The message is one line, names the thing, and says what to do about it.
    """
