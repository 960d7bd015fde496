"""`deeplab-jax presets`."""

import argparse
import dataclasses

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command


def run(args: argparse.Namespace) -> None:
    """Prints a table."""
    from deeplab_jax.cli import output
    from deeplab_jax.pretrained import presets

    values = [dataclasses.asdict(preset) for preset in presets.list_presets()]
    output.show([presets.presets_table()], values, args.json)


COMMAND = Command(
    name="presets",
    summary="List the pretrained networks: task, published score, size and license.",
    add_arguments=arguments.add_json,
    run=run,
    examples=("presets", "presets --json"),
    lists=("presets", "backbone presets"),
)
