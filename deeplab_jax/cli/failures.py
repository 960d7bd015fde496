"""Exceptions that no code of this package raised on purpose: the one place that turns each into one line."""

import datetime
import logging
import os
import pathlib
import platform
import re
import shlex
import traceback
from collections.abc import Sequence

from deeplab_jax import __version__
from deeplab_jax.cli.command import Command
from deeplab_jax.errors import from_os_error, is_file_error, is_out_of_memory

logger = logging.getLogger(__name__)

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "grain", "orbax-checkpoint")
_REQUESTED = re.compile(r"allocat\w* ([\d.]+) ?(bytes|[KMGT]i?B?)\b", re.IGNORECASE)


def report(error: Exception, command: Command | None, argv: Sequence[str]) -> None:
    """Reports an exception in one line. For one whose cause is not known, the line names a file with the traceback.

    Args:
      error: the exception.
      command: the command that raised it; None if the command line was not parsed yet.
      argv: the command line.
    """
    line = _explain(error, command)
    if line is None:
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        path = _save_traceback(error, argv)
        if path is None:
            traceback.print_exception(error)
        where = "the traceback above" if path is None else f"{path}, which holds the traceback"
        line = f"unexpected error, please report it with {where}: {summary}"
    logger.error("%s", " ".join(line.splitlines()), exc_info=error)  # the traceback goes to --log-file only


def _explain(error: Exception, command: Command | None) -> str | None:
    """Returns one line for an exception whose cause is known, otherwise None."""
    if is_out_of_memory(error):
        requested = _REQUESTED.search(str(error))
        amount = f" while allocating {_readable(*requested.groups())}" if requested else ""
        smaller = command.when_out_of_memory if command is not None and command.when_out_of_memory else "use less data"
        return f"out of memory{amount}; {smaller}"
    if isinstance(error, OSError) and is_file_error(error):
        return str(from_os_error(error))
    if _is_from_backend_choice(error):
        wanted = os.environ.get("JAX_PLATFORMS")
        what = "a device" if wanted is None else f"the platform of JAX_PLATFORMS={wanted}"
        return (
            f"JAX cannot use {what}: this machine has no such device, or JAX was installed without support for it; "
            "unset JAX_PLATFORMS to use what is there, or install JAX for the device"
        )
    return None


def _is_from_backend_choice(error: Exception) -> bool:
    """True for the errors of `jax.devices()` without a device: one has a message, the other is a bare assertion."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("Unable to initialize backend")
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    return isinstance(error, AssertionError) and last is not None and last.filename.endswith("jax/_src/xla_bridge.py")


def _readable(number: str, unit: str) -> str:
    if unit.lower() != "bytes":
        return f"{number} {unit}"
    return f"{float(number) / 2**30:.1f} GiB" if float(number) >= 2**28 else f"{float(number) / 2**20:.1f} MiB"


def _save_traceback(error: Exception, argv: Sequence[str]) -> pathlib.Path | None:
    """Writes the traceback, the command line and the versions to a new file; None if it cannot be written."""
    lines = [
        f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}",
        f"deeplab-jax {shlex.join(argv)}",
        f"deeplab_jax {__version__}, Python {platform.python_version()}, {platform.platform()}",
        ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
        *(f"{name}={value}" for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_", "DEEPLAB_JAX_"))),
        "",
        "".join(traceback.format_exception(error)),
    ]
    import tempfile

    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="deeplab-jax-", suffix=".txt", delete=False
        ) as file:
            file.write("\n".join(lines))
    except OSError:  # no folder for temporary files, or the disk is full
        return None
    return pathlib.Path(file.name)


def _version(name: str) -> str:
    import importlib.metadata  # slow, and most commands do not fail

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
