"""Results on standard output: tables for people, JSON for programs."""

import contextlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from deeplab_jax.cli.arguments import STDOUT
from deeplab_jax.errors import from_os_error
from deeplab_jax.files import write_json
from deeplab_jax.text import printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

logger = logging.getLogger(__name__)

_WIDTH = 160  # columns of a table that does not go to a terminal


def show(tables: Iterable["Table"], values: Any, json_file: pathlib.Path | None) -> None:
    """Prints results as `--json` asks for.

    Args:
      tables: the results for people.
      values: the results for programs.
      json_file: the argument of `--json`. None prints the tables, STDOUT prints the values instead, and a file gets
        the values while the tables are printed.

    Raises:
      UserError: the file cannot be written.
    """
    if json_file == STDOUT:
        with _standard_output():
            print(json.dumps(values, indent=2, allow_nan=False))
        return
    print_tables(tables)
    if json_file is not None:
        write_json(json_file, values)


def print_tables(tables: Iterable["Table"]) -> None:
    """Prints tables, as wide as the terminal. Strings in them are plain text: names from files may look like markup."""
    from rich.console import Console

    class PlainConsole(Console):
        """Prints control characters as escapes."""

        def render_str(self, text: str, **options: Any) -> "Text":
            """Renders a string of a table."""
            return super().render_str(printable(text), **options)

    width = None if sys.stdout is not None and sys.stdout.isatty() else _WIDTH
    console = PlainConsole(width=width, highlight=False, markup=False, emoji=False)
    with _standard_output():
        for table in tables:
            console.print(table)


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    """Ends the command if standard output cannot be written."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        _discard_output()
        sys.exit(1)
    except OSError as error:
        _discard_output()
        raise from_os_error(error, "cannot write to standard output") from None


def _discard_output() -> None:
    """Connects standard output to nothing, so that the rest of its buffer does not fail again when it is closed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def log_scores(scores: dict[str, Any], place: str | None) -> None:
    """Logs the main scores of an evaluation in one line, which ends with the place of all scores, if any."""
    names = {"mean IoU": "mean_iou", "pixel accuracy": "pixel_accuracy", "loss": "loss"}
    shown = [f"{name} {scores[key]:.4f}" for name, key in names.items() if scores[key] is not None]
    where = "" if place is None else f"; see {place}"
    logger.info("%s on %d images%s", ", ".join(shown), scores["num_images"], where)
