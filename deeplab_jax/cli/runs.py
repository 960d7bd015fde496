"""`deeplab-jax runs`."""

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command

if TYPE_CHECKING:
    from rich.table import Table

    from deeplab_jax.workdir.runs import Run

# Where more fields differ than fit beside each other, these come first.
_MAIN_FIELDS = (
    "model.backbone", "model.head", "data.name", "data.image_size", "optimizer.learning_rate", "train.duration",
)  # fmt: skip
_MOST_COLUMNS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("folder", type=arguments.path, metavar="FOLDER", help="folder that holds the workdirs")
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Prints a table."""
    show_runs(args.folder, args.json)


def show_runs(folder: pathlib.Path, json_file: pathlib.Path | None) -> None:
    """Prints the table of the runs in a folder, as `--json` asks for."""
    from deeplab_jax import config as config_lib
    from deeplab_jax.cli import output
    from deeplab_jax.workdir import runs

    found = runs.list_runs(folder)
    fields = runs.differing_fields(found)
    values = [
        {**dataclasses.asdict(each), "config": config_lib.to_dict(each.config)}
        | {"differs": {path: column[i] for path, column in fields.items()}}
        for i, each in enumerate(found)
    ]
    output.show([_table(found, fields)], values, json_file)


def _table(found: "list[Run]", fields: dict[str, list[Any]]) -> "Table":
    from rich.table import Table

    shown = sorted(fields, key=lambda path: path not in _MAIN_FIELDS)[:_MOST_COLUMNS]
    hidden = len(fields) - len(shown)
    table = Table(title="Runs", caption=f"{hidden} more config fields differ; --json lists them" if hidden else None)
    table.add_column("run", no_wrap=True)
    for heading in ("state", "step", "mean IoU", "best", "at step"):
        table.add_column(heading, justify="left" if heading == "state" else "right")
    for path in shown:
        table.add_column(path.replace(".", ". "), min_width=len(path.split(".")[-1]), overflow="fold")
    for i, each in enumerate(found):
        values = (_show(fields[path][i]) for path in shown)
        table.add_row(each.name, each.state, f"{each.step}/{each.total_steps}", *_scores(each), *values)
    return table


def _scores(each: "Run") -> tuple[str, str, str]:
    if each.last is None:
        return "–", "–", "–"
    return f"{each.last['mean_iou']:.4f}", f"{each.best['mean_iou']:.4f}", str(each.best["step"])


def _show(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


COMMAND = Command(
    name="runs",
    summary="List the training runs in a folder: state, scores, and the config fields that differ.",
    add_arguments=add_arguments,
    run=run,
    examples=("runs runs", "runs runs/sweep --json"),
)
