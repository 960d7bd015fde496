"""`deeplab-jax aot`."""

import argparse

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE", help="TPU slice to compile for, for example v5e:4x4"
    )
    parser.add_argument(
        "--slices", type=arguments.count, default=1, metavar="N", help="number of such slices (default: 1)"
    )
    parser.add_argument(
        "--batch-per-chip",
        type=arguments.count,
        metavar="N",
        help="images per chip, or per group of mesh.spatial chips (default: from the config)",
    )
    parser.add_argument(
        "--find-batch", action="store_true", help="compile several batch sizes to find the largest that fits"
    )
    parser.add_argument(
        "--inference", action="store_true", help="compile the evaluation step instead of the train step"
    )
    arguments.add_num_classes(parser)
    arguments.add_stage(parser)
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Compiles, and prints tables."""
    from deeplab_jax.cli import output
    from deeplab_jax.cli.config_flags import parse_stage_config

    config = parse_stage_config(args.config_arguments, args.stage)
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing runs, so a TPU of this machine stays free
    jax.config.update("jax_enable_compilation_cache", False)  # the compile time is one of the results
    from deeplab_jax.analysis import aot

    result = aot.analyze(
        config,
        args.topology,
        num_classes=arguments.count_classes(args, config),
        slices=args.slices,
        batch_per_chip=args.batch_per_chip,
        inference=args.inference,
        search=args.find_batch,
    )
    output.show(result.tables(), result.to_json(), args.json)


COMMAND = Command(
    name="aot",
    summary="Compile a config for a TPU slice and show its memory, traffic and roofline; no TPU needed.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory="use a smaller --batch-per-chip or data.image_size",
    examples=(
        "aot --config deeplabv3plus_resnet101_voc --topology v5e:16x16 --slices 2 --batch-per-chip 4",
        "aot --config quickstart --topology v5e:2x2 --find-batch --json",
    ),
    takes_config=True,
    needs_config=True,
    lists=("built-in configs",),
)
