"""`deeplab-jax benchmark-latency`."""

import argparse

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    arguments.add_network(parser, required=False)
    parser.add_argument(
        "--sizes", type=arguments.sizes, metavar="HxW,...", help="image sizes (default: the network's own)"
    )
    parser.add_argument(
        "--batches", type=arguments.counts, default="1", metavar="N,...", help="batch sizes (default: %(default)s)"
    )
    parser.add_argument(
        "--repetitions",
        type=arguments.count,
        default=50,
        metavar="N",
        help="measurements per size and batch (default: %(default)s)",
    )
    parser.add_argument(
        "--compute-dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s"
    )
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Measures, and prints a table."""
    from deeplab_jax import pretrained
    from deeplab_jax.analysis import latency
    from deeplab_jax.cli import output

    name = args.workdir or args.preset or pretrained.DEFAULT_PRESET
    network = pretrained.load(name)
    results = latency.measure_latency(
        network,
        args.sizes or [network.image_size or (513, 513)],
        args.batches,
        compute_dtype=args.compute_dtype,
        repetitions=args.repetitions,
    )
    table = latency.latency_table(results, f"{name}, {args.compute_dtype}")
    output.show([table], {"results": [result._asdict() for result in results]}, args.json)


COMMAND = Command(
    name="benchmark-latency",
    summary="Measure the latency of a network: median and 95th percentile by image size and batch size.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory="use smaller --sizes or --batches",
    examples=(
        "benchmark-latency --sizes 257x257,513x513 --batches 1,4",
        "benchmark-latency --preset deeplabv3_resnet50_coco --json latency.json",
    ),
    lists=("presets",),
)
