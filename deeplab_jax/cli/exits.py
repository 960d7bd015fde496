"""The ends of the command's process."""

import logging
import os
import sys
from typing import NoReturn

logger = logging.getLogger(__name__)

SUPERVISED = "DEEPLAB_JAX_SUPERVISED"  # set in the processes that deeplab_jax.parallel.launcher starts


def report(message: object) -> None:
    """Reports, in one line, why the command ends."""
    logger.error("%s", " ".join(str(message).split()))


def fail(message: object, code: int) -> NoReturn:
    """Reports an error in one line and exits."""
    report(message)
    leave(code)


def leave(code: int) -> NoReturn:
    """Exits; in a run of several processes without waiting for the others, which may wait for this one."""
    if SUPERVISED in os.environ:
        exit_at_once(code)
    sys.exit(code)


def end_process(message: object, code: int) -> NoReturn:
    """Reports why, and ends the process from any thread, whatever the main thread is doing."""
    from deeplab_jax.cli.logging_setup import console

    console().show_cursor()  # a progress bar hides it
    report(message)
    exit_at_once(code)


def exit_at_once(code: int) -> NoReturn:
    """Ends the process without running exit handlers or destructors."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
