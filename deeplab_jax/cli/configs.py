"""`deeplab-jax configs`."""

import argparse
import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command

if TYPE_CHECKING:
    from rich.table import Table

    from deeplab_jax.config import ConfigDescription


def run(args: argparse.Namespace) -> None:
    """Prints a table."""
    from deeplab_jax import config as config_lib
    from deeplab_jax.cli import output

    descriptions = config_lib.list_configs()
    output.show([_table(descriptions)], [dataclasses.asdict(each) for each in descriptions], args.json)


def _table(descriptions: "Iterable[ConfigDescription]") -> "Table":
    from rich.table import Table

    table = Table(title="Configs")
    table.add_column("config", no_wrap=True)  # names are copied whole
    for heading in ("description", "data", "score"):
        table.add_column(heading, overflow="fold")
    for config in descriptions:
        cells = (config.name, config.summary, config.data, config.score)
        table.add_row(*(cell or "–" for cell in cells))
    return table


COMMAND = Command(
    name="configs",
    summary="List the built-in configs: network, data set and score.",
    add_arguments=arguments.add_json,
    run=run,
    examples=("configs", "configs --json"),
)
