"""Logging of the command: messages of the package as plain lines on stderr, and in a file if asked for."""

import functools
import logging
import pathlib
from types import TracebackType
from typing import TYPE_CHECKING

from deeplab_jax import progress
from deeplab_jax.errors import from_os_error
from deeplab_jax.text import printable

if TYPE_CHECKING:  # `--help` does not import rich
    from rich.console import Console

_LOGGER = logging.getLogger("deeplab_jax")


@functools.cache
def console() -> "Console":
    """The console for log lines and progress bars: standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


class ConsoleHandler(logging.Handler):
    """Prints each message as one line above the progress bars. Warnings and errors are styled and carry a prefix.

    Tracebacks are left to the log file, and so are messages that a progress bar shows already.
    """

    _PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "deeplab-jax: "}
    _STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the record. Square brackets in it are text, not markup."""
        from rich.text import Text

        if getattr(record, progress.SHOWN_IN_BAR, False):
            return
        try:
            text = self._PREFIXES.get(record.levelno, "") + printable(record.getMessage())
            console().print(Text(text, style=self._STYLES.get(record.levelno, "")), soft_wrap=True)
        except Exception:
            self.handleError(record)


class FileFormatter(logging.Formatter):
    """One line per message, with its time. A traceback follows the message."""

    def __init__(self):
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Formats the line without the traceback."""
        return printable(super().formatMessage(record))


class CommandLogging:
    """A context manager that shows the package's messages while a command runs, and restores logging at its end."""

    def __enter__(self) -> "CommandLogging":
        self._previous = _LOGGER.handlers[:], _LOGGER.level, _LOGGER.propagate
        self._console_handler = ConsoleHandler(logging.INFO)
        _LOGGER.handlers[:] = [self._console_handler]
        _LOGGER.setLevel(logging.INFO)
        _LOGGER.propagate = False  # libraries install handlers on the root logger, which would print every line again
        return self

    def configure(self, *, quiet: bool, log_file: pathlib.Path | None) -> None:
        """Applies the command's options.

        Args:
          quiet: print errors only, and no progress bars.
          log_file: gets all messages, with date and time, after what it holds already.

        Raises:
          UserError: the file cannot be written.
        """
        if quiet:
            self._console_handler.setLevel(logging.ERROR)
        else:
            progress.show_on(console())
        if log_file is not None:
            try:
                file_handler = logging.FileHandler(log_file, encoding="utf-8")
            except OSError as error:
                raise from_os_error(error, f"cannot write --log-file {log_file}") from None
            file_handler.setFormatter(FileFormatter())
            _LOGGER.addHandler(file_handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _close_handlers()
        _LOGGER.handlers[:], level, _LOGGER.propagate = self._previous
        _LOGGER.setLevel(level)
        progress.show_on(None)


def silence() -> None:
    """Makes this process report errors only, on stderr, which the process that started it reads."""
    for handler in _LOGGER.handlers[:]:
        if isinstance(handler, ConsoleHandler):
            handler.setLevel(logging.ERROR)
        else:
            _LOGGER.removeHandler(handler)
            handler.close()
    progress.show_on(None)


def _close_handlers() -> None:
    for handler in _LOGGER.handlers[:]:
        _LOGGER.removeHandler(handler)
        handler.close()
