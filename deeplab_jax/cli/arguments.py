"""Arguments and argument types that several commands share."""

import argparse
import logging
import math
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from deeplab_jax.cli.names import RUNTIMES
from deeplab_jax.errors import UserError
from deeplab_jax.files import local_path, open_path

if TYPE_CHECKING:  # commands import little before they know their arguments
    from ml_collections import ConfigDict

logger = logging.getLogger(__name__)

ANY = "any"

#: Prints the traceback of an error.
DEBUG = "--debug"

_LARGEST = 2**31 - 1
_LARGEST_SIDE = 2**16 - 1
_MOST_CLASSES = 255  # a label is one byte, and 255 is the ignore label
_CLASSES = 21  # of PASCAL VOC, for a config whose data set is not prepared

#: Start of an address on the Hugging Face Hub; `deeplab_jax.pretrained.hub` parses it.
HUB = "hf://"

#: `--json` without a file: JSON goes to standard output.
STDOUT = pathlib.Path("-")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every command."""
    parser.add_argument("--quiet", action="store_true", help="print errors only: no messages, no progress bars")
    parser.add_argument(
        "--log-file", type=disk_path, metavar="FILE", help="also append all messages to FILE, with their time"
    )
    parser.add_argument(DEBUG, action="store_true", help="print the traceback of an error")


def add_network(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds `--workdir` and `--preset`, of which only one can be given."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--workdir", type=path, help="use the network of this training run, or runs/photos@best")
    default = "" if required else " (default: the network that ships with the package)"
    group.add_argument(
        "--preset",
        type=network,
        metavar="NAME|FOLDER",
        help=f"use a preset, a folder that `deeplab-jax convert` wrote, or hf://owner/name on the Hugging Face Hub"
        f"{default}",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds `--checkpoint`."""
    parser.add_argument(
        "--checkpoint",
        type=checkpoint,
        metavar="best|newest|STEP",
        help="checkpoint of the training run: the one with the best mean IoU, the newest, or that of a step (default: "
        "checkpoint.use of its config)",
    )


def add_provenance(parser: argparse.ArgumentParser) -> None:
    """Adds `--license` and `--author`."""
    parser.add_argument(
        "--license", metavar="NAME", help="license of the weights, for the model card, such as Apache-2.0"
    )
    parser.add_argument("--author", metavar="NAME", help="who trained the network, for the model card")


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Adds `--data-dir`."""
    parser.add_argument(
        "--data-dir",
        type=path,
        help=f"folder of prepared data sets (default: $DEEPLAB_JAX_DATA or ~{os.sep}deeplab_jax_data)",
    )


def add_num_classes(parser: argparse.ArgumentParser) -> None:
    """Adds `--classes`, a number. See `count_classes`."""
    parser.add_argument(
        "--classes",
        type=classes,
        metavar="N",
        help=f"number of classes (default: those of the config's data set, or {_CLASSES} if it is not prepared)",
    )


def count_classes(args: argparse.Namespace, config: "ConfigDict") -> int:
    """Returns `--classes`, or else the number of classes of the config's data set."""
    from deeplab_jax import config as config_lib
    from deeplab_jax import data

    if args.classes is not None:
        return args.classes
    config_lib.check_sizes(config)  # a generated data set has this size
    try:
        return data.open_split(config, config.data.train_split).label_set.num_classes
    except UserError as error:
        logger.info("%s; assuming %d classes, see --classes", error, _CLASSES)
        return _CLASSES


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`; see `deeplab_jax.cli.output.show`."""
    parser.add_argument(
        "--json",
        type=writable_file,
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="print the results as JSON instead, or also write them to FILE",
    )


def path(text: str) -> pathlib.Path:
    """Parses the path of a file or folder, local or in a bucket."""
    return open_path(name_or_path(text))


def disk_path(text: str) -> pathlib.Path:
    """Parses the path of a local file or folder."""
    return local_path(_parse(text, local_path))


def name_or_path(text: str) -> str:
    """Parses a name, or the path of a file or folder, local or in a bucket."""
    return _parse(text, open_path)


def _parse(text: str, parse: Callable[[str], pathlib.Path]) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a name, a file or a folder")
    try:
        parse(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def network(text: str) -> str:
    """Parses a name, the path of a file or folder, or an address on the Hugging Face Hub."""
    return text if text.startswith(HUB) else name_or_path(text)


def writable_file(text: str) -> pathlib.Path:
    """Parses the path of a file to write, and checks that this is possible before any work starts."""
    file = disk_path(text)
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text}: there is no folder {file.parent}")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text}: it is {'a folder' if file.is_dir() else 'read-only'}")
    return file


def add_value_range(parser: argparse.ArgumentParser) -> None:
    """Adds `--value-range`."""
    parser.add_argument(
        "--value-range",
        type=value_range,
        metavar="LOW,HIGH",
        help="values that become black and white in images of more than 8 bits, for example 0,4095 for 12 bits "
        "(default: 0,65535 for 16 bits, 0,1 for floats; images that do not fit are rejected)",
    )


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """Adds `--runtime`."""
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default=RUNTIMES[0],
        help="program that computes the network; litert and onnxruntime are faster on CPUs and need the extra "
        "`runtimes`; auto measures them in long jobs, and uses the fastest from then on (default: %(default)s)",
    )


def add_max_megapixels(parser: argparse.ArgumentParser) -> None:
    """Adds `--max-megapixels`."""
    parser.add_argument(
        "--max-megapixels",
        type=count,
        metavar="N",
        help="largest image to read, in million pixels (default: 268)",
    )


def max_pixels(args: argparse.Namespace) -> int | None:
    """The value of `--max-megapixels` in pixels."""
    return None if args.max_megapixels is None else args.max_megapixels * 10**6


def checkpoint(text: str) -> str:
    """Parses `best`, `newest` or the step of a checkpoint."""
    if text in ("best", "newest"):
        return text
    try:
        return str(index(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not best, newest or the step of a checkpoint") from None


def add_stage(parser: argparse.ArgumentParser) -> None:
    """Adds `--stage`."""
    parser.add_argument("--stage", metavar="NAME", help="stage of a config that has stages (default: the last)")


def split_workdir(args: argparse.Namespace) -> None:
    """Takes `--workdir WORKDIR@CHECKPOINT` for the two options. `--checkpoint` counts if it is given as well."""
    from deeplab_jax import pretrained

    if args.workdir is not None:
        args.workdir, named = pretrained.split_checkpoint(args.workdir)
        args.checkpoint = args.checkpoint or named


def size(text: str) -> tuple[int, int]:
    """Parses `HEIGHTxWIDTH`."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(_is_integer(side, 1, _LARGEST_SIDE) for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HEIGHTxWIDTH, for example 257x257, with sides of at most {_LARGEST_SIDE}"
        )
    return int(sides[0]), int(sides[1])


def channel_ids(text: str) -> tuple[int, int, int]:
    """Parses the numbers of three channels, separated by commas."""
    numbers = text.split(",")
    if len(numbers) != 3 or not all(_is_integer(number, 0, 15) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not RED,GREEN,BLUE, three channels such as 3,2,1")
    red, green, blue = map(int, numbers)
    return red, green, blue


def size_or_any(text: str) -> tuple[int, int] | str:
    """Parses `HEIGHTxWIDTH` or `any`."""
    return text if text == ANY else size(text)


def sizes(text: str) -> list[tuple[int, int]]:
    """Parses sizes separated by commas."""
    return [size(item) for item in text.split(",")]


def count(text: str) -> int:
    """Parses an integer of at least 1."""
    return _integer(text, 1, _LARGEST)


def count_or_any(text: str) -> int | str:
    """Parses an integer of at least 1, or `any`."""
    return text if text == ANY else count(text)


def counts(text: str) -> list[int]:
    """Parses integers of at least 1 separated by commas."""
    return [count(item) for item in text.split(",")]


def index(text: str) -> int:
    """Parses an integer of at least 0."""
    return _integer(text, 0, _LARGEST)


def ids(text: str) -> list[int]:
    """Parses ids of masks, 0 to 65535, separated by commas."""
    return [_integer(item, 0, 2**16 - 1) for item in text.split(",")]


def classes(text: str) -> int:
    """Parses a number of classes."""
    return _integer(text, 1, _MOST_CLASSES)


def fraction(text: str) -> float:
    """Parses a number between 0 and 1."""
    return _number(text, 1, "a number")


def points(text: str) -> float:
    """Parses a number of percentage points."""
    return _number(text, 100, "a number of percentage points")


def tolerance(text: str) -> float:
    """Parses a number of pixels."""
    return _number(text, 100, "a number of pixels")


def _number(text: str, largest: int, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= largest:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} between 0 and {largest}")
    return value


def scales(text: str) -> tuple[float, ...]:
    """Parses numbers separated by commas."""
    try:
        return tuple(float(scale) for scale in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of scales, for example 0.75,1,1.25") from None


def value_range(text: str) -> tuple[float, float]:
    """Parses two increasing numbers separated by a comma."""
    try:
        low, high = (float(value) for value in text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH, two increasing numbers such as 0,4095")
    return low, high


def port(text: str) -> int:
    """Parses the number of a TCP port."""
    if not _is_integer(text, 0, 2**16 - 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 0 and 65535")
    return int(text)


def _integer(text: str, smallest: int, largest: int) -> int:
    if not _is_integer(text, smallest, largest):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer between {smallest} and {largest}")
    return int(text)


def _is_integer(text: str, smallest: int, largest: int) -> bool:
    # No number that is allowed is longer; Python refuses to convert numbers of thousands of digits.
    return text.isdecimal() and len(text) <= 20 and smallest <= int(text) <= largest
