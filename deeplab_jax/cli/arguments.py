"""What the `deeplab-jax` command takes: its commands, their arguments, and the config that overrides give."""

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from deeplab_jax import __version__
from deeplab_jax import config as config_lib
from deeplab_jax.errors import suggest

_CONFIG_HELP = """configs:
  --config NAME_OR_FILE[:arg=value,...]   a config of the package or a file with get_config
  --config.group.field=value              overrides one field, e.g. --config.data.batch_size=8
"""

# Names of deeplab_jax.pretrained, video and export, whose imports take seconds: --help must not wait for them.
FORMATS = "kerascv, kerashub, torchvision, smp, timm, efficientnet-lite, tflite, tf-deeplab, workdir or deeplab_jax"
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
CODECS = ("mpeg4", "vp9")
EXPORT_FORMATS = ("stablehlo", "savedmodel", "tflite", "onnx")
ANY = "any"


class UsageError(Exception):
    """The command line itself is wrong: exit code 2."""


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; `handler` of what it returns names the command, such as `data check`.

    It raises a UsageError where argparse would print its usage and exit.
    """
    parser = _OneLineParser(prog="deeplab-jax", description="DeepLabv3+ semantic segmentation in JAX.")
    parser.add_argument("--version", action="version", version=f"deeplab_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, fill=None, *, takes_config: bool = False) -> None:
        _add_command(commands, name, name, text, fill, takes_config=takes_config)

    add("train", "Train a network, or continue the training in a workdir.", _add_train, takes_config=True)
    add("evaluate", "Score a trained network on a whole split.", _add_evaluate, takes_config=True)
    add("predict", "Label images and videos.", _add_predict, takes_config=True)
    add("benchmark-latency", "Time a network: p50 and p95 by size and batch.", _add_latency)
    add("demo", "Serve a page on this machine where networks can be tried on images.", _add_demo)
    add("summary", "Parameters and multiply-adds of a config's network.", _add_summary, takes_config=True)
    add("aot", "What a config needs on a TPU slice, from its compiler; no TPU needed.", _add_aot, takes_config=True)
    add("export", "Write a trained network for another runtime; see docs/export.md.", _add_export)
    add("convert", "Turn another framework's file, or a run, into a folder that --preset takes.", _add_convert)
    add("presets", "List the pretrained networks: from where, with which score on what.")
    _add_data(commands.add_parser("data", help="Prepare, check and look at data sets."))
    return parser


def parse_config(arguments: Sequence[str], *, base: ConfigDict | None = None) -> ConfigDict:
    """The config of a command line.

    Args:
      arguments: `--config NAME[:args]` and `--config.group.field=value`, in either form of giving values.
      base: used where no `--config` is given.

    Raises:
      UserError: no such config, or a value it refuses.
      UsageError: no config at all, a field that does not exist, or a value of the wrong type.
    """
    arguments, name = _take_name(list(arguments))
    if name is None and base is None:
        raise UsageError("no --config is given; for instance --config quickstart")
    if name is not None:
        file, _, argument = name.partition(":")
        base = config_lib.read_config_file(config_lib.find_config(file), argument)
    unknown = _unknown_field(arguments, base)
    if unknown is not None:
        raise UsageError(unknown)
    values, argv = flags.FlagValues(), ["deeplab-jax", *arguments]
    try:
        config_flags.DEFINE_config_dict("config", base, flag_values=values, sys_argv=argv)
        values(argv)
        return values.config
    except (flags.Error, TypeError, ValueError, SyntaxError) as error:
        raise UsageError(f"config: {' '.join(str(error).split())}") from None


def _take_name(arguments: list[str]) -> tuple[list[str], str | None]:
    """Separates `--config NAME` or `--config=NAME` from the overrides."""
    name, rest, items = None, [], iter(arguments)
    for item in items:
        if item == "--config":
            name = next(items, None)
            if name is None:
                raise UsageError("--config needs a name or a file")
        elif item.startswith("--config="):
            name = item.removeprefix("--config=")
        else:
            rest.append(item)
    return rest, name


def not_config(arguments: Sequence[str]) -> list[str]:
    """Those of the arguments that are not `--config...` with their values."""
    strange, items = [], iter(arguments)
    for item in items:
        if not item.startswith("--config"):
            strange.append(item)
        elif "=" not in item:
            next(items, None)
    return strange


def _unknown_field(arguments: Sequence[str], config: ConfigDict) -> str | None:
    for item in arguments:
        if item.startswith("--config."):
            path = item.removeprefix("--config.").split("=")[0]
            group, parent = config, ""
            for key in path.split("."):
                if not isinstance(group, ConfigDict) or key not in group:
                    known = [parent + other for other in group] if isinstance(group, ConfigDict) else [parent[:-1]]
                    return f"config field {path} does not exist{suggest(parent + key, known)}"
                group, parent = group[key], f"{parent}{key}."
    return None


def _add_command(parent, name: str, handler: str, text: str, fill, *, takes_config: bool = False) -> None:
    command = parent.add_parser(
        name,
        help=text,
        description=text,
        epilog=_CONFIG_HELP if takes_config else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(handler=handler, takes_config=takes_config)
    if fill is not None:
        fill(command)


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("--workdir", type=pathlib.Path, required=True, help="folder for everything the run writes")
    _add_processes(train)


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    _add_network(evaluate)
    evaluate.add_argument("--data", help="data set; default: the run's own")
    evaluate.add_argument("--data-dir", type=pathlib.Path, help="where data sets are prepared")
    evaluate.add_argument("--split", help="default: the run's data.eval_split")
    evaluate.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the scores here")
    _add_processes(evaluate)


def _add_predict(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("inputs", nargs="*", type=pathlib.Path, metavar="IMAGE|FOLDER|VIDEO")
    _add_network(predict, required=False)
    predict.add_argument("--output", type=pathlib.Path, required=True, help="folder for the results")
    predict.add_argument("--size", type=_size, metavar="HxW", help="of the network's input; default: the network's own")
    predict.add_argument("--scales", type=_scales, metavar="S,...", help="average over these factors, e.g. 0.75,1,1.25")
    predict.add_argument("--flip", action="store_true", help="average with what the mirrored image gives")
    predict.add_argument("--window", type=_size, metavar="HxW", help="slide a window of this size over large images")
    predict.add_argument(
        "--classes", type=lambda text: text.split(","), metavar="NAME,...", help="choose among these; default: all"
    )
    video = predict.add_argument_group("videos: one with the classes' colors over each frame")
    video.add_argument("--camera", type=int, metavar="INDEX", help="label what a camera sees, until Ctrl-C")
    video.add_argument(
        "--smooth", type=float, metavar="ALPHA", help="weight of a frame in the average over time; default: 1, none"
    )
    video.add_argument(
        "--codec", choices=CODECS, default=CODECS[0], help="vp9 for browsers, slow; default: mpeg4, for players"
    )


def _add_latency(latency: argparse.ArgumentParser) -> None:
    _add_network(latency, required=False)
    latency.add_argument("--sizes", type=_sizes, metavar="HxW,...", help="of the images; default: the network's own")
    latency.add_argument("--batches", type=_counts, default=[1], metavar="N,...", help="images at a time; default: 1")
    latency.add_argument("--repetitions", type=_count, default=50, metavar="N", help="of each; default: 50")
    latency.add_argument("--compute-dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    latency.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the results here")


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument(
        "--preset",
        nargs="+",
        default=[],
        metavar="NAME|FOLDER",
        help="first in the page's menu; presets that are on this disk are in it anyway",
    )
    demo.add_argument("--workdir", type=pathlib.Path, help="of a training run, likewise")
    demo.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, which other machines do not reach")
    demo.add_argument("--port", type=int, default=7860, help="default: 7860; 0 for any free one")
    demo.add_argument("--max-megabytes", type=int, default=32, metavar="N", help="of an uploaded file; default: 32")
    demo.add_argument("--max-megapixels", type=int, default=25, metavar="N", help="of an image; default: 25")


def _add_summary(summary: argparse.ArgumentParser) -> None:
    summary.add_argument("--classes", type=int, default=21, help="default: 21")
    summary.add_argument(
        "--mesh",
        type=int,
        nargs="?",
        const=0,
        metavar="DEVICES",
        help="also list where each array lives on a mesh of so many devices; default: as many as are here",
    )


def _add_aot(aot: argparse.ArgumentParser) -> None:
    aot.add_argument("--topology", required=True, metavar="CHIP:SHAPE", help="of the slice, for instance v5e:4x4")
    aot.add_argument(
        "--batch-per-chip",
        type=int,
        metavar="N",
        help="images of a chip, or of the mesh.spatial chips that share them; default: the config's own",
    )
    aot.add_argument(
        "--find-batch", action="store_true", help="also find the largest batch a chip, by compiling several"
    )
    aot.add_argument("--inference", action="store_true", help="the evaluation's step instead of the training's")
    aot.add_argument("--classes", type=int, default=21, help="default: 21")
    aot.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write it all here")


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("--to", required=True, choices=EXPORT_FORMATS, metavar="FORMAT", help=", ".join(EXPORT_FORMATS))
    _add_network(export, required=False)
    export.add_argument(
        "--output", type=pathlib.Path, required=True, metavar="PATH", help="file; of savedmodel a folder"
    )
    export.add_argument(
        "--size",
        type=_size_or_any,
        metavar="HxW|any",
        help="of the images; default: the network's own, else any",
    )
    export.add_argument("--batch", type=_count_or_any, metavar="N|any", help="images a call; default: any, tflite 1")
    export.add_argument("--argmax", action="store_true", help="uint8 labels come out instead of float32 logits")
    export.add_argument("--uint8", action="store_true", help="images go in as uint8 instead of float32")


def _add_convert(convert: argparse.ArgumentParser) -> None:
    convert.add_argument(
        "files", type=pathlib.Path, nargs="+", metavar="FILE|FOLDER", help="of several, the mean of their variables"
    )
    convert.add_argument("--from", dest="format", required=True, metavar="FORMAT", help=FORMATS)
    convert.add_argument("--output", type=pathlib.Path, required=True, metavar="FOLDER")
    convert.add_argument("--size", type=_size, metavar="HxW", help="of the network's input; default: as it was")
    convert.add_argument("--half", action="store_true", help="kernels as float16: half the size, read as float32")


def _add_data(data: argparse.ArgumentParser) -> None:
    verbs = data.add_subparsers(dest="verb", required=True, metavar="prepare|check|show")

    def add(verb: str, text: str, fill) -> None:
        _add_command(verbs, verb, f"data {verb}", text, fill)

    add("prepare", "Write a data set's images and masks as ArrayRecord files.", _add_prepare)
    add("check", "Read every example: sizes, labels, classes, images in two splits.", _add_check)
    add("show", "Draw a gallery of a split's images and masks.", _add_show)


def _add_prepare(prepare: argparse.ArgumentParser) -> None:
    prepare.add_argument("name", metavar="NAME", help="sbd, voc2012_segmentation, camvid or folder")
    prepare.add_argument("--source", type=pathlib.Path, help="folder or archive; default: download, where it is public")
    prepare.add_argument("--sbd-source", type=pathlib.Path, help="for voc2012_segmentation: adds the split trainaug")
    prepare.add_argument("--val-fraction", type=float, help="for folder without lists; default: 0.2")
    prepare.add_argument(
        "--data-dir", type=pathlib.Path, help=f"default: $DEEPLAB_JAX_DATA or ~{os.sep}deeplab_jax_data"
    )


def _add_check(check: argparse.ArgumentParser) -> None:
    check.add_argument("name", metavar="NAME", help="a prepared data set, or what --source holds")
    check.add_argument("--source", type=pathlib.Path, help="a raw folder, checked instead of the prepared data set")
    check.add_argument("--data-dir", type=pathlib.Path, help="where data sets are prepared")


def _add_show(show: argparse.ArgumentParser) -> None:
    show.add_argument("name", metavar="NAME", help="a prepared data set, or synthetic")
    show.add_argument("--split", default="train", help="default: train")
    show.add_argument("--count", type=int, default=12, help="images spread over the split; default: 12")
    show.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE.png")
    show.add_argument("--data-dir", type=pathlib.Path, help="where data sets are prepared")


def _add_processes(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("runs of many processes, one a machine or more; see docs/reliability.md")
    group.add_argument("--cluster", action="store_true", help="of a TPU pod, SLURM or Open MPI, which know the rest")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0; with the next two")
    group.add_argument("--num-processes", type=int, metavar="N", help="of the run")
    group.add_argument("--process-id", type=int, metavar="I", help="of this process, from 0")
    group.add_argument("--local-processes", type=int, metavar="N", help="start the run's N processes on this machine")


def _add_network(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    network = command.add_mutually_exclusive_group(required=required)
    network.add_argument("--workdir", type=pathlib.Path, help="of a training run")
    default = "" if required else "; default: the network that comes with the package"
    network.add_argument(
        "--preset", metavar="NAME|FOLDER", help=f"see `deeplab-jax presets` and `deeplab-jax convert`{default}"
    )


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, for instance 257x257")
    return int(sides[0]), int(sides[1])


def _size_or_any(text: str) -> tuple[int, int] | str:
    return text if text == ANY else _size(text)


def _sizes(text: str) -> list[tuple[int, int]]:
    return [_size(item) for item in text.split(",")]


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _count_or_any(text: str) -> int | str:
    return text if text == ANY else _count(text)


def _counts(text: str) -> list[int]:
    return [_count(item) for item in text.split(",")]


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(scale) for scale in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of factors, for instance 0.75,1,1.25") from None
