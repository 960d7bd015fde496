"""The ends of the command's process."""

import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # `--help` does not import JAX
    from deeplab_jax.parallel.preemption import Preemption

logger = logging.getLogger(__name__)

SUPERVISED = "DEEPLAB_JAX_SUPERVISED"  # set in the processes that deeplab_jax.parallel.launcher starts


def report(message: object) -> None:
    """Reports, in one line, why the command ends."""
    logger.error("%s", " ".join(str(message).splitlines()))


def fail(message: object, code: int) -> NoReturn:
    """Reports an error in one line and exits."""
    report(message)
    leave(code)


def leave(code: int) -> NoReturn:
    """Exits; in a run of several processes without waiting for the others, which may wait for this one."""
    if SUPERVISED in os.environ:
        exit_at_once(code)
    sys.exit(code)


def notice_signals(advice: str = "", **options: Any) -> "Preemption":
    """Returns a context manager that notices signals, even while the main thread compiles or computes.

    If nothing would be lost, or after a second Ctrl-C, it reports the signal and ends the process.

    Args:
      advice: the end of that line.
      **options: see `Preemption`.
    """
    from deeplab_jax.cli.logging_setup import console
    from deeplab_jax.parallel.preemption import Preemption

    def end(code: int, line: str) -> NoReturn:
        console().show_cursor()  # a progress bar hides it
        report(f"{line}{advice}")
        exit_at_once(code)

    return Preemption(end=end, **options)


def exit_at_once(code: int) -> NoReturn:
    """Ends the process without running exit handlers or destructors."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None if it was closed before the process started
            with contextlib.suppress(OSError):  # nobody reads it anymore
                stream.flush()
    os._exit(code)
