"""Arguments and argument types that several commands share."""

import argparse
import os
import pathlib

ANY = "any"

#: `--json` without a file: JSON goes to standard output.
STDOUT = pathlib.Path("-")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every command."""
    parser.add_argument("--quiet", action="store_true", help="print errors only: no messages, no progress bars")
    parser.add_argument(
        "--log-file", type=pathlib.Path, metavar="FILE", help="also append all messages to FILE, with their time"
    )


def add_network(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds `--workdir` and `--preset`, of which only one can be given."""
    network = parser.add_mutually_exclusive_group(required=required)
    network.add_argument("--workdir", type=pathlib.Path, help="use the network of this training run")
    default = "" if required else " (default: the network that ships with the package)"
    network.add_argument(
        "--preset",
        metavar="NAME|FOLDER",
        help=f"use a preset, or a folder that `deeplab-jax convert` wrote{default}",
    )


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Adds `--data-dir`."""
    parser.add_argument(
        "--data-dir",
        type=pathlib.Path,
        help=f"folder of prepared data sets (default: $DEEPLAB_JAX_DATA or ~{os.sep}deeplab_jax_data)",
    )


def add_num_classes(parser: argparse.ArgumentParser) -> None:
    """Adds `--classes`, a number."""
    parser.add_argument("--classes", type=int, default=21, metavar="N", help="number of classes (default: %(default)s)")


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


def writable_file(text: str) -> pathlib.Path:
    """Parses the path of a file to write, and checks that this is possible before any work starts."""
    path = pathlib.Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text}: it is {'a folder' if path.is_dir() else 'read-only'}")
    return path


def size(text: str) -> tuple[int, int]:
    """Parses `HEIGHTxWIDTH`."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, for example 257x257")
    return int(sides[0]), int(sides[1])


def size_or_any(text: str) -> tuple[int, int] | str:
    """Parses `HEIGHTxWIDTH` or `any`."""
    return text if text == ANY else size(text)


def sizes(text: str) -> list[tuple[int, int]]:
    """Parses sizes separated by commas."""
    return [size(item) for item in text.split(",")]


def count(text: str) -> int:
    """Parses an integer of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def count_or_any(text: str) -> int | str:
    """Parses an integer of at least 1, or `any`."""
    return text if text == ANY else count(text)


def counts(text: str) -> list[int]:
    """Parses integers of at least 1 separated by commas."""
    return [count(item) for item in text.split(",")]


def scales(text: str) -> tuple[float, ...]:
    """Parses numbers separated by commas."""
    try:
        return tuple(float(scale) for scale in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of scales, for example 0.75,1,1.25") from None


def port(text: str) -> int:
    """Parses the number of a TCP port."""
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 0 and 65535")
    return int(text)
