"""`deeplab-jax summary`."""

import argparse
import dataclasses
import logging

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    arguments.add_num_classes(parser)
    arguments.add_stage(parser)
    parser.add_argument(
        "--mesh",
        type=arguments.count,
        nargs="?",
        const=0,
        metavar="N",
        help="also list how each array is split over a mesh of N devices (default: those of this machine)",
    )
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Prints one table, or two with `--mesh`."""
    from deeplab_jax import config as config_lib
    from deeplab_jax.cli import output
    from deeplab_jax.cli.config_flags import parse_stage_config

    config = parse_stage_config(args.config_arguments, args.stage)
    if unused := config_lib.unused_fields(config):
        logger.warning("the config sets fields that have no effect: %s", ", ".join(unused))
    import jax

    from deeplab_jax.analysis import summary

    devices, num_classes = args.mesh, arguments.count_classes(args, config)
    if devices == 0:
        devices = jax.device_count()
    tables, values = [], {}
    if args.json != arguments.STDOUT:  # counting takes seconds
        tables.append(summary.summary_table(config, num_classes))
        if devices is not None:
            tables.append(summary.mesh_table(config, num_classes, devices))
    if args.json is not None:
        values["parts"] = [dataclasses.asdict(part) for part in summary.summarize_config(config, num_classes)]
        if devices is not None:
            values["mesh"], placements = summary.place_arrays(config, num_classes, devices)
            values["arrays"] = [dataclasses.asdict(array) for array in placements]
    output.show(tables, values, args.json)


COMMAND = Command(
    name="summary",
    summary="Show the parameters, output shapes and multiply-adds of a network.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory="use a smaller data.image_size",
    examples=("summary --config kerascv_guide", "summary --config quickstart:size=128 --mesh 8 --json"),
    takes_config=True,
    needs_config=True,
    lists=("built-in configs",),
)
