"""Results on standard output: tables for people, JSON for programs."""

import json
import logging
import pathlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deeplab_jax.cli.arguments import STDOUT
from deeplab_jax.files import write_json

if TYPE_CHECKING:
    from rich.table import Table

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
        print(json.dumps(values, indent=2, allow_nan=False))
        return
    print_tables(tables)
    if json_file is not None:
        write_json(json_file, values)


def print_tables(tables: Iterable["Table"]) -> None:
    """Prints tables, as wide as the terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    for table in tables:
        console.print(table)


def log_scores(scores: dict[str, Any], place: str | None) -> None:
    """Logs the main scores of an evaluation in one line, which ends with the place of all scores, if any."""
    names = {"mean IoU": "mean_iou", "pixel accuracy": "pixel_accuracy", "loss": "loss"}
    shown = [f"{name} {scores[key]:.4f}" for name, key in names.items() if scores[key] is not None]
    where = "" if place is None else f"; see {place}"
    logger.info("%s on %d images%s", ", ".join(shown), scores["num_images"], where)
