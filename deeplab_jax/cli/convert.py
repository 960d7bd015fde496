"""`deeplab-jax convert`."""

import argparse
import contextlib
import dataclasses
import logging
from typing import TYPE_CHECKING

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command
from deeplab_jax.errors import UsageError

if TYPE_CHECKING:
    from deeplab_jax.pretrained import PretrainedNetwork

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "files",
        type=arguments.network,
        nargs="+",
        metavar="FILE|FOLDER",
        help="weights to convert, also hf://owner/name/FILE on the Hugging Face Hub; several files are averaged (model "
        "soup)",
    )
    parser.add_argument("--from", dest="format", required=True, metavar="FORMAT", help="format of the files, see below")
    arguments.add_checkpoint(parser)
    arguments.add_provenance(parser)
    parser.add_argument("--output", type=arguments.path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--size", type=arguments.size, metavar="HxW", help="network input size to record (default: as in the file)"
    )
    parser.add_argument(
        "--half", action="store_true", help="store kernels as float16: half the size, loaded as float32"
    )


def run(args: argparse.Namespace) -> None:
    """Converts, and logs what was read."""
    from deeplab_jax.pretrained import average, bundle
    from deeplab_jax.pretrained.provenance import check_license

    network = average([_import(name, args.format, args.checkpoint) for name in args.files])
    if args.size is not None:
        # another size of windows has a stride of its own
        feeding = {path: value for path, value in network.feeding.items() if path != "eval.window_stride"}
        network = dataclasses.replace(network, image_size=args.size, feeding=feeding)
    stated = {"author": args.author, "license": None if args.license is None else check_license(args.license)}
    stated = {name: value for name, value in stated.items() if value is not None}
    network = dataclasses.replace(network, provenance=dataclasses.replace(network.provenance, **stated))
    bundle.save(network, args.output, half=args.half)
    for line in network.report:
        logger.info("%s", line)
    contents = "backbone only" if network.label_set is None else f"{network.label_set.num_classes} classes"
    logger.info("Wrote %s: %s, %s", args.output, network.model.backbone, contents)


def _import(name: str, file_format: str, checkpoint: str | None) -> "PretrainedNetwork":
    from deeplab_jax.pretrained import hub, import_file, split_checkpoint
    from deeplab_jax.storage.local_copies import local_input

    if not hub.is_address(name):
        path, named = split_checkpoint(name)
        own = file_format in ("workdir", "deeplab_jax")  # other readers need a local file
        with contextlib.nullcontext(path) if own else local_input(path) as file:
            return import_file(file, file_format, checkpoint=checkpoint or named)
    if checkpoint is not None:
        raise UsageError("--checkpoint chooses a checkpoint of a training run, not of a network on the Hub")
    if hub.parse(name).file is None:
        return hub.load(name, file_format)
    network = import_file(hub.download_file(name), file_format)
    return dataclasses.replace(network, provenance=dataclasses.replace(network.provenance, origin=name))


COMMAND = Command(
    name="convert",
    summary="Convert weights of another framework, or a training run, to a folder that --preset accepts.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory="close other programs, or use a machine with more memory",
    examples=(
        "convert --from torchvision deeplabv3_resnet50_coco-cd0a2569.pth --output networks/deeplabv3",
        "convert --from workdir runs/photos --half --output networks/photos",
    ),
    lists=("formats",),
)
