"""`deeplab-jax export`."""

import argparse
import logging
import pathlib
from typing import TYPE_CHECKING

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command
from deeplab_jax.cli.names import EXPORT_FORMATS, QUANTIZATIONS
from deeplab_jax.errors import UserError

if TYPE_CHECKING:  # see `arguments`
    from deeplab_jax.export import ExportOptions
    from deeplab_jax.pretrained import PretrainedNetwork

logger = logging.getLogger(__name__)

_MOST_CALIBRATION_IMAGES = 100  # the number that the scores in docs/export.md were measured with
_VERIFIED_IMAGES = 8

#: `--verify` without a folder.
_DRAWN = pathlib.Path("-")


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
        help="image size (default: that of the network's preset or run, otherwise any)",
    )
    parser.add_argument(
        "--batch", type=arguments.count_or_any, metavar="N|any", help="batch size (default: any; 1 for tflite)"
    )
    parser.add_argument("--argmax", action="store_true", help="output uint8 labels instead of float32 logits")
    parser.add_argument("--uint8", action="store_true", help="take uint8 images instead of float32")
    parser.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        metavar="|".join(QUANTIZATIONS),
        help="store weights in half the space, or compute with 8-bit integers (tflite and onnx)",
    )
    parser.add_argument(
        "--calibration",
        type=arguments.path,
        metavar="FOLDER",
        help=f"training images for --quantize int8, of which it takes {_MOST_CALIBRATION_IMAGES}",
    )
    parser.add_argument(
        "--verify",
        type=arguments.path,
        nargs="?",
        const=_DRAWN,
        metavar="FOLDER",
        help=f"compare the file with the network on {_VERIFIED_IMAGES} images of FOLDER (default: those of "
        "--calibration, otherwise drawn ones); exit with 1 if they differ",
    )


def run(args: argparse.Namespace) -> None:
    """Exports, and logs the input and output of the program."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # the program is only written, for all platforms
    from deeplab_jax import export, pretrained
    from deeplab_jax.storage import BucketPath

    if (args.calibration is None) != (args.quantize != "int8"):
        raise UserError("--quantize int8 and --calibration FOLDER belong together; give both or neither")
    if args.verify is not None and isinstance(args.output, BucketPath):
        raise UserError("--verify runs local files; export to a local --output")
    name = args.workdir or args.preset or pretrained.DEFAULT_PRESET
    network = pretrained.load(name, checkpoint=args.checkpoint)
    options = _options(args, network)
    calibration = []
    if args.calibration is not None:
        calibration = export.read_inputs(network, options, args.calibration, most=_MOST_CALIBRATION_IMAGES)
        logger.info("Calibrating with %d images of %s", len(calibration), args.calibration)
    values = export.export_network(network, args.to, args.output, options, calibration=calibration)
    given, made = ("x".join(map(str, values[side]["shape"])) for side in ("input", "output"))
    logger.info(
        "Wrote %s: %s images %s to %s %s %s; see %s",
        args.output, values["input"]["dtype"], given,
        values["output"]["dtype"], values["output"]["contents"], made,
        export.metadata_path(args.to, args.output),
    )  # fmt: skip
    script = export.script_path(args.to, args.output)
    if script.exists():
        logger.info("%s labels an image with it as `deeplab-jax predict` does", script)
    if args.verify is not None:
        _verify(args, network, options)


def _options(args: argparse.Namespace, network: "PretrainedNetwork") -> "ExportOptions":
    """Returns the input and the output, with the size of the preset or the run."""
    from deeplab_jax import export, pretrained
    from deeplab_jax.workdir import layout

    size, batch = args.size, args.batch
    if size is None:
        size = network.image_size
    if size is None and args.to == "tflite" and args.workdir is not None:  # needs one
        path, _ = pretrained.split_checkpoint(args.workdir)
        size = layout.read_config(path).data.image_size
    if batch is None and args.to == "tflite":
        batch = 1
    return export.ExportOptions(
        size=None if size in (None, arguments.ANY) else tuple(size),
        batch=None if batch == arguments.ANY else batch,
        argmax=args.argmax,
        uint8=args.uint8,
        quantize=args.quantize,
    )


def _verify(args: argparse.Namespace, network: "PretrainedNetwork", options: "ExportOptions") -> None:
    from deeplab_jax import export

    folder = args.calibration if args.verify == _DRAWN else args.verify
    if folder is None:
        images = export.draw_inputs(network, options, _VERIFIED_IMAGES)
    else:
        images = export.read_inputs(network, options, folder, most=_VERIFIED_IMAGES)
    result = export.verify(network, args.to, args.output, options, images)
    if not result.passed:
        raise UserError(f"{args.output} differs from the network: {result}")
    logger.info("Verified %s: %s", args.output, result)


COMMAND = Command(
    name="export",
    summary="Export a trained network to StableHLO, SavedModel, TFLite or ONNX.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory="use a smaller --size or --batch",
    examples=(
        "export --to onnx --workdir runs/photos --output photos.onnx --verify",
        "export --to tflite --quantize int8 --calibration photos/train --output network.tflite",
    ),
    lists=("presets",),
)
