"""The `deeplab-jax` command: parses, then hands over."""

import argparse
import dataclasses
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from deeplab_jax import __version__
from deeplab_jax import config as config_lib
from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.host_memory import use_large_pages

_CONFIG_HELP = """configs:
  --config NAME_OR_FILE[:arg=value,...]   a config of the package or a file with get_config
  --config.group.field=value              overrides one field, e.g. --config.data.batch_size=8
"""

# Of deeplab_jax.pretrained.FORMATS, which takes seconds to import: --help must not wait for it.
_FORMATS = "kerascv, kerashub, torchvision, smp, timm, efficientnet-lite, tflite, tf-deeplab, workdir or deeplab_jax"
# Of deeplab_jax.export.FORMATS, for the same reason.
_EXPORT_FORMATS = ("stablehlo", "savedmodel", "tflite", "onnx")
_ANY = "any"

_SUPERVISED = "DEEPLAB_JAX_SUPERVISED"  # set in the processes that deeplab_jax.supervise started


class UsageError(Exception):
    """The command line itself is wrong: exit code 2."""


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _fail(f"{message}; see `{self.prog} --help`", 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits.

    0 when done, 1 for a user's mistake or a run of which a process died, 2 for a wrong command line, 75 when SIGTERM
    stopped a training that has saved its state and goes on with the same command, 130 for Ctrl-C.
    """
    if argv is None:
        use_large_pages()
    parser = _parser()
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = parser.parse_known_args(argv)
    args.argv = argv
    console = Console(stderr=True, highlight=False)
    try:
        takes_config = getattr(args, "takes_config", False)
        for item in rest if not takes_config else _not_config(rest):
            raise UsageError(f"unknown argument {item}; see `deeplab-jax {args.command} --help`")
        if takes_config:
            _use_compilation_cache()
        args.run(args, rest, console)
    except UsageError as error:
        _fail(error, 2)
    except UserError as error:
        _fail(error, 1)
    except Preempted as stopped:
        print(f"deeplab-jax: {stopped}; the same command continues", file=sys.stderr)
        sys.exit(Preempted.EXIT_CODE)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues from the newest checkpoint, if there is one", 130)
    except Exception:
        if _SUPERVISED not in os.environ:
            raise
        time.sleep(2)  # another process' death is a failed operation here: the parent speaks, and ends this one
        traceback.print_exc()
        _exit(1)
    sys.exit(0)


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


def _not_config(arguments: Sequence[str]) -> list[str]:
    """The arguments that are not `--config...` with their values."""
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
                    return f"config field {path} does not exist{config_lib.suggest(parent + key, known)}"
                group, parent = group[key], f"{parent}{key}."
    return None


def _use_compilation_cache() -> None:
    """Keeps compiled programs between runs of the command: the second start of a config takes a fraction of the first.

    JAX_COMPILATION_CACHE_DIR says where; empty switches it off.
    """
    import jax

    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "deeplab_jax" / "xla"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.fspath(folder))


def _join_processes(args: argparse.Namespace, config: ConfigDict, console: Console) -> None:
    """Makes this process one of a run of many, if the command line says so, before anything uses a device.

    The process that the user started becomes the parent of the one, or of the `--local-processes`, that do the work.
    """
    explicit = [args.coordinator, args.num_processes, args.process_id]
    if None in explicit and explicit != [None] * 3:
        raise UsageError("--coordinator, --num-processes and --process-id belong together")
    if args.local_processes is not None and args.local_processes < 1:
        raise UsageError(f"--local-processes {args.local_processes} must be at least 1")
    if _SUPERVISED in os.environ:
        from deeplab_jax import distributed

        heartbeat_seconds = config.distributed.heartbeat_seconds
        distributed.start(args.coordinator, args.num_processes, args.process_id, heartbeat_seconds=heartbeat_seconds)
        console.quiet = not distributed.is_leader()
        return
    ways = (args.coordinator is not None) + args.cluster + (args.local_processes is not None)
    if ways > 1:
        raise UsageError("give one of --coordinator, --cluster and --local-processes")
    if ways == 1:
        from deeplab_jax import supervise

        command = [sys.executable, "-m", "deeplab_jax", *args.argv]
        launches = [[]] if args.local_processes is None else supervise.local_launches(args.local_processes)
        code, line = supervise.run([[*command, *launch] for launch in launches], {_SUPERVISED: "1"})
        if line is not None:
            _fail(line, code)
        sys.exit(code)


def _train(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    config = parse_config(rest)
    _join_processes(args, config, console)
    from deeplab_jax.train import train

    scores = train(config, args.workdir, console=console)
    _report(scores, args.workdir, console)


def _evaluate(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    _join_processes(args, parse_config(rest, base=config_lib.base_config()), console)
    from deeplab_jax import checkpoint, distributed, pretrained
    from deeplab_jax.evaluate import evaluate_pretrained, evaluate_workdir

    if args.preset is not None:
        network = pretrained.load(args.preset, console=console)
        base = pretrained.preset_config(network)
    else:
        base = checkpoint.read_config(args.workdir)
    config = parse_config(rest, base=base)
    if args.data is not None:
        config.data.name = args.data
    if args.data_dir is not None:
        config.data.data_dir = str(args.data_dir)
    if args.preset is not None:
        scores = evaluate_pretrained(network, config=config, split=args.split, console=console)
    else:
        scores = evaluate_workdir(args.workdir, config=config, split=args.split, console=console)
    if args.json is not None and distributed.is_leader():
        checkpoint.write_json(args.json, scores)
    _report(scores, args.workdir, console)


def _predict(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from deeplab_jax import checkpoint, pretrained
    from deeplab_jax.predict import Predictor, predict_files

    if args.preset is not None:
        network = pretrained.load(args.preset, console=console)
        predictor = Predictor.from_pretrained(network, parse_config(rest, base=pretrained.preset_config(network)))
    else:
        config = parse_config(rest, base=checkpoint.read_config(args.workdir))
        predictor = Predictor.from_workdir(args.workdir, config)
    written = predict_files(predictor, args.inputs, args.output, console=console)
    console.print(f"{len(written) // 2} masks and overlays in {args.output}", soft_wrap=True)


def _convert(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from deeplab_jax.pretrained import import_file, native

    network = import_file(args.file, args.format)
    if args.size is not None:
        network = dataclasses.replace(network, image_size=_size(args.size))
    native.save(network, args.output, half=args.half)
    for line in network.report:
        console.print(line, soft_wrap=True)
    what = f"{network.labels.num_classes} classes" if network.labels else "a backbone alone"
    console.print(f"{network.model.backbone}, {what}, in {args.output}", soft_wrap=True)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UsageError(f"--size {text} is no HEIGHTxWIDTH such as 321x321")
    return int(match[1]), int(match[2])


def _presets(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from deeplab_jax.pretrained.table import presets_table

    Console(width=None if sys.stdout.isatty() else 160).print(presets_table())


def _summary(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    config = parse_config(rest)
    import jax

    from deeplab_jax.summary import mesh_table, summary_table

    out = Console(width=None if sys.stdout.isatty() else 140)
    out.print(summary_table(config, args.classes))
    if args.mesh is not None:
        out.print(mesh_table(config, args.classes, args.mesh or jax.device_count()))


def _aot(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    config = parse_config(rest)
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing runs: a TPU of this machine stays free
    jax.config.update("jax_enable_compilation_cache", False)  # how long it takes to compile is part of the answer
    from deeplab_jax import aot, checkpoint

    if args.batch_per_chip is not None and args.batch_per_chip < 1:
        raise UsageError(f"--batch-per-chip {args.batch_per_chip} must be at least 1")
    values = aot.report(
        config,
        args.topology,
        num_classes=args.classes,
        batch_per_chip=args.batch_per_chip,
        inference=args.inference,
        search=args.find_batch,
        console=console,
        out=Console(width=None if sys.stdout.isatty() else 140),
    )
    if args.json is not None:
        checkpoint.write_json(args.json, values)


def _export(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # a program is written, for all platforms; nothing runs
    from deeplab_jax import export, pretrained

    batch = args.batch or ("1" if args.to == "tflite" else _ANY)
    if batch != _ANY and not batch.isdecimal():
        raise UsageError(f"--batch {batch} is no number of pictures, nor {_ANY}")
    size = None if args.size in (None, _ANY) else _size(args.size)
    network = pretrained.load(args.workdir if args.preset is None else args.preset, console=console)
    options = export.ExportOptions(
        size=network.image_size if args.size is None else size,
        batch=None if batch == _ANY else int(batch),
        argmax=args.argmax,
        uint8=args.uint8,
    )
    values = export.export_network(network, args.to, args.output, options)
    given, made = ("x".join(map(str, values[side]["shape"])) for side in ("input", "output"))
    console.print(
        f"{args.output}: {values['input']['dtype']} pictures {given} to {values['output']['dtype']} "
        f"{values['output']['contents']} {made}; described in {export.metadata_path(args.to, args.output)}",
        soft_wrap=True,
    )


def _data_prepare(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from deeplab_jax.data.prepare import prepare

    prepare(
        args.name,
        source=args.source,
        sbd_source=args.sbd_source,
        data_dir=args.data_dir,
        val_fraction=args.val_fraction,
        console=console,
    )


def _data_check(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from deeplab_jax.data.check import check, report_tables

    report = check(args.name, data_dir=args.data_dir, source=args.source, console=console)
    out = Console(highlight=False)
    for table in report_tables(report):
        out.print(table)
    if not report.ok:
        problems = sum(len(split.problems) for split in report.splits.values())
        raise UserError(
            f"{args.name} has {problems} wrong examples and {len(report.leaks)} leaks; see the tables above"
        )


def _data_show(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from deeplab_jax import data, visualize

    if args.output.exists():
        raise UserError(f"{args.output} exists; choose another --output or remove it")
    source = data.open_source(args.name, args.split, data_dir=args.data_dir)
    if args.count < 1:
        raise UsageError(f"--count {args.count} must be at least 1")
    count = min(args.count, len(source))
    images, label_maps = zip(*data.decoded(source, [i * len(source) // count for i in range(count)]), strict=True)
    visualize.plot_segmentation_mask_gallery(images, label_maps, labels=source.labels, path=args.output)
    console.print(f"{count} of {len(source)} examples of {args.name}/{args.split} in {args.output}", soft_wrap=True)


def _report(scores: dict, workdir: pathlib.Path | None, console: Console) -> None:
    where = f"; see metrics.json and gallery.png in {workdir}" if workdir is not None else ""
    console.print(
        f"mean IoU {scores['mean_iou']:.4f}, pixel accuracy {scores['pixel_accuracy']:.4f}, loss {scores['loss']:.4f} "
        f"on {scores['num_images']} pictures{where}",
        soft_wrap=True,
    )


def _fail(message: object, code: int) -> NoReturn:
    print(f"deeplab-jax: {' '.join(str(message).split())}", file=sys.stderr)
    _exit(code)


def _exit(code: int) -> NoReturn:
    if _SUPERVISED in os.environ:
        from deeplab_jax import distributed

        distributed.exit_at_once(code)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="deeplab-jax", description="DeepLabv3+ semantic segmentation in JAX.")
    parser.add_argument("--version", action="version", version=f"deeplab_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(parent, name: str, run, text: str, *, takes_config: bool = False) -> argparse.ArgumentParser:
        command = parent.add_parser(
            name,
            help=text,
            description=text,
            epilog=_CONFIG_HELP if takes_config else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=run, takes_config=takes_config)
        return command

    train = add(commands, "train", _train, "Train a network, or continue the training in a workdir.", takes_config=True)
    train.add_argument("--workdir", type=pathlib.Path, required=True, help="folder for everything the run writes")
    _add_processes(train)

    evaluate = add(commands, "evaluate", _evaluate, "Score a trained network on a whole split.", takes_config=True)
    _add_network(evaluate)
    evaluate.add_argument("--data", help="data set; default: the run's own")
    evaluate.add_argument("--data-dir", type=pathlib.Path, help="where data sets are prepared")
    evaluate.add_argument("--split", help="default: the run's data.eval_split")
    evaluate.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the scores here")
    _add_processes(evaluate)

    predict = add(commands, "predict", _predict, "Label pictures: a mask and an overlay for each.", takes_config=True)
    predict.add_argument("inputs", nargs="+", type=pathlib.Path, metavar="IMAGE|FOLDER")
    _add_network(predict)
    predict.add_argument("--output", type=pathlib.Path, required=True, help="folder for the results")

    summary = add(
        commands, "summary", _summary, "Parameters and multiply-adds of a config's network.", takes_config=True
    )
    summary.add_argument("--classes", type=int, default=21, help="default: 21")
    summary.add_argument(
        "--mesh",
        type=int,
        nargs="?",
        const=0,
        metavar="DEVICES",
        help="also list where each array lives on a mesh of so many devices; default: as many as are here",
    )

    aot = add(
        commands,
        "aot",
        _aot,
        "What a config needs on a TPU slice, from its compiler; no TPU needed.",
        takes_config=True,
    )
    aot.add_argument("--topology", required=True, metavar="CHIP:SHAPE", help="of the slice, for instance v5e:4x4")
    aot.add_argument(
        "--batch-per-chip",
        type=int,
        metavar="N",
        help="pictures of a chip, or of the mesh.spatial chips that share them; default: the config's own",
    )
    aot.add_argument(
        "--find-batch", action="store_true", help="also find the largest batch a chip, by compiling several"
    )
    aot.add_argument("--inference", action="store_true", help="the evaluation's step instead of the training's")
    aot.add_argument("--classes", type=int, default=21, help="default: 21")
    aot.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write it all here")

    export = add(commands, "export", _export, "Write a trained network for another runtime; see docs/export.md.")
    export.add_argument(
        "--to", required=True, choices=_EXPORT_FORMATS, metavar="FORMAT", help=", ".join(_EXPORT_FORMATS)
    )
    _add_network(export)
    export.add_argument(
        "--output", type=pathlib.Path, required=True, metavar="PATH", help="file; of savedmodel a folder"
    )
    export.add_argument(
        "--size", metavar="HEIGHTxWIDTH|any", help="of the pictures; default: the network's own, any if it has none"
    )
    export.add_argument("--batch", metavar="N|any", help="pictures a call; default: any, of tflite 1")
    export.add_argument("--argmax", action="store_true", help="uint8 labels come out instead of float32 logits")
    export.add_argument("--uint8", action="store_true", help="pictures go in as uint8 instead of float32")

    convert = add(
        commands, "convert", _convert, "Turn another framework's file, or a run, into a folder that --preset takes."
    )
    convert.add_argument("file", type=pathlib.Path, metavar="FILE|FOLDER")
    convert.add_argument("--from", dest="format", required=True, metavar="FORMAT", help=_FORMATS)
    convert.add_argument("--output", type=pathlib.Path, required=True, metavar="FOLDER")
    convert.add_argument("--size", metavar="HEIGHTxWIDTH", help="that pictures get for the network; default: as it was")
    convert.add_argument("--half", action="store_true", help="kernels as float16: half the size, read as float32")

    add(commands, "presets", _presets, "List the pretrained networks: from where, with which score on what.")

    data = commands.add_parser("data", help="Prepare, check and look at data sets.")
    verbs = data.add_subparsers(dest="verb", required=True, metavar="prepare|check|show")
    prepare = add(verbs, "prepare", _data_prepare, "Write a data set's pictures and masks as ArrayRecord files.")
    prepare.add_argument("name", metavar="NAME", help="sbd, voc2012_segmentation, camvid or folder")
    prepare.add_argument("--source", type=pathlib.Path, help="folder or archive; default: download, where it is public")
    prepare.add_argument("--sbd-source", type=pathlib.Path, help="for voc2012_segmentation: adds the split trainaug")
    prepare.add_argument("--val-fraction", type=float, help="for folder without lists; default: 0.2")
    prepare.add_argument(
        "--data-dir", type=pathlib.Path, help=f"default: $DEEPLAB_JAX_DATA or ~{os.sep}deeplab_jax_data"
    )

    check = add(verbs, "check", _data_check, "Read every example: sizes, labels, classes, pictures in two splits.")
    check.add_argument("name", metavar="NAME", help="a prepared data set, or what --source holds")
    check.add_argument("--source", type=pathlib.Path, help="a raw folder, checked instead of the prepared data set")
    check.add_argument("--data-dir", type=pathlib.Path, help="where data sets are prepared")

    show = add(verbs, "show", _data_show, "Draw a gallery of a split's pictures and masks.")
    show.add_argument("name", metavar="NAME", help="a prepared data set, or synthetic")
    show.add_argument("--split", default="train", help="default: train")
    show.add_argument("--count", type=int, default=12, help="pictures spread over the split; default: 12")
    show.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE.png")
    show.add_argument("--data-dir", type=pathlib.Path, help="where data sets are prepared")
    return parser


def _add_processes(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("runs of many processes, one a machine or more; see docs/reliability.md")
    group.add_argument("--cluster", action="store_true", help="of a TPU pod, SLURM or Open MPI, which know the rest")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0; with the next two")
    group.add_argument("--num-processes", type=int, metavar="N", help="of the run")
    group.add_argument("--process-id", type=int, metavar="I", help="of this process, from 0")
    group.add_argument("--local-processes", type=int, metavar="N", help="start the run's N processes on this machine")


def _add_network(command: argparse.ArgumentParser) -> None:
    network = command.add_mutually_exclusive_group(required=True)
    network.add_argument("--workdir", type=pathlib.Path, help="of a training run")
    network.add_argument("--preset", metavar="NAME|FOLDER", help="see `deeplab-jax presets` and `deeplab-jax convert`")
