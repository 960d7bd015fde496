"""`deeplab-jax summary`."""

import argparse

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    arguments.add_num_classes(parser)
    parser.add_argument(
        "--mesh",
        type=int,
        nargs="?",
        const=0,
        metavar="N",
        help="also list how each array is split over a mesh of N devices (default: those of this machine)",
    )
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Prints one table, or two with `--mesh`."""
    from deeplab_jax.cli import output
    from deeplab_jax.cli.config_flags import parse_config

    config = parse_config(args.config_arguments)
    import jax

    from deeplab_jax.analysis import summary

    tables = [summary.summary_table(config, args.classes)]
    if args.mesh is not None:
        tables.append(summary.mesh_table(config, args.classes, args.mesh or jax.device_count()))
    output.print_tables(tables)


COMMAND = Command(
    name="summary",
    summary="Show the parameters, output shapes and multiply-adds of a network.",
    add_arguments=add_arguments,
    run=run,
    examples=("summary --config kerascv_guide", "summary --config quickstart:size=128 --mesh 8 --json"),
    takes_config=True,
    lists=("built-in configs",),
)
