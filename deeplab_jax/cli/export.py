"""`deeplab-jax export`."""

import argparse
import logging

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command
from deeplab_jax.cli.names import EXPORT_FORMATS

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--to", required=True, choices=EXPORT_FORMATS, metavar="FORMAT", help=", ".join(EXPORT_FORMATS))
    arguments.add_network(parser, required=False)
    arguments.add_checkpoint(parser)
    parser.add_argument(
        "--output", type=arguments.path, required=True, metavar="PATH", help="file to write; a folder for savedmodel"
    )
    parser.add_argument(
        "--size",
        type=arguments.size_or_any,
        metavar="HxW|any",
        help="image size (default: the network's own, otherwise any)",
    )
    parser.add_argument(
        "--batch", type=arguments.count_or_any, metavar="N|any", help="batch size (default: any; 1 for tflite)"
    )
    parser.add_argument("--argmax", action="store_true", help="output uint8 labels instead of float32 logits")
    parser.add_argument("--uint8", action="store_true", help="take uint8 images instead of float32")


def run(args: argparse.Namespace) -> None:
    """Exports, and logs the input and output of the program."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # the program is only written, for all platforms
    from deeplab_jax import export, pretrained

    name = args.workdir or args.preset or pretrained.DEFAULT_PRESET
    network = pretrained.load(name, checkpoint=args.checkpoint)
    size, batch = args.size, args.batch
    if size is None:
        size = network.image_size
    if batch is None and args.to == "tflite":
        batch = 1
    options = export.ExportOptions(
        size=None if size == arguments.ANY else size,
        batch=None if batch == arguments.ANY else batch,
        argmax=args.argmax,
        uint8=args.uint8,
    )
    values = export.export_network(network, args.to, args.output, options)
    given, made = ("x".join(map(str, values[side]["shape"])) for side in ("input", "output"))
    logger.info(
        "Wrote %s: %s images %s to %s %s %s; see %s",
        args.output, values["input"]["dtype"], given,
        values["output"]["dtype"], values["output"]["contents"], made,
        export.metadata_path(args.to, args.output),
    )  # fmt: skip


COMMAND = Command(
    name="export",
    summary="Export a trained network to StableHLO, SavedModel, TFLite or ONNX.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory="use a smaller --size or --batch",
    examples=(
        "export --to tflite --output network.tflite",
        "export --to onnx --workdir runs/photos --size 512x512 --output photos.onnx",
    ),
    lists=("presets",),
)
