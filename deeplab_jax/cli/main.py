"""The `deeplab-jax` command: parses, then hands over."""

import argparse
import dataclasses
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax import config as config_lib
from deeplab_jax.cli.arguments import ANY, VIDEO_SUFFIXES, UsageError, build_parser, not_config, parse_config
from deeplab_jax.cli.host_memory import prepare_jax
from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.files import create_folder, write_json

_SUPERVISED = "DEEPLAB_JAX_SUPERVISED"  # set in the processes that deeplab_jax.parallel.launcher started


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits.

    0 when done, 1 for a user's mistake or a run of which a process died, 2 for a wrong command line, 75 when SIGTERM
    stopped a training that has saved its state and goes on with the same command, 130 for Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console(stderr=True, highlight=False)
    try:
        args, rest = build_parser().parse_known_args(argv)
        args.argv = argv
        for item in rest if not args.takes_config else not_config(rest):
            raise UsageError(f"unknown argument {item}; see `deeplab-jax {args.command} --help`")
        if args.takes_config:
            _set_up_jax()
        _HANDLERS[args.handler](args, rest, console)
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


def _set_up_jax() -> None:
    """Keeps compiled programs between runs of the command: the second start of a config takes a fraction of the first.

    JAX_COMPILATION_CACHE_DIR says where; empty switches it off. The memory of a processor's steps is kept, too.
    """
    import jax

    prepare_jax()

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
        from deeplab_jax.parallel import processes

        heartbeat_seconds = config.distributed.heartbeat_seconds
        processes.start(args.coordinator, args.num_processes, args.process_id, heartbeat_seconds=heartbeat_seconds)
        console.quiet = not processes.is_leader()
        return
    ways = (args.coordinator is not None) + args.cluster + (args.local_processes is not None)
    if ways > 1:
        raise UsageError("give one of --coordinator, --cluster and --local-processes")
    if ways == 1:
        from deeplab_jax.parallel import launcher

        command = [sys.executable, "-m", "deeplab_jax", *args.argv]
        launches = [[]] if args.local_processes is None else launcher.local_launches(args.local_processes)
        code, line = launcher.run([[*command, *launch] for launch in launches], {_SUPERVISED: "1"})
        if line is not None:
            _fail(line, code)
        sys.exit(code)


def _train(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    config = parse_config(rest)
    _join_processes(args, config, console)
    from deeplab_jax.training.loop import train

    scores = train(config, args.workdir)
    _report(scores, args.workdir, console)


def _evaluate(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    _join_processes(args, parse_config(rest, base=config_lib.base_config()), console)
    from deeplab_jax import pretrained
    from deeplab_jax.evaluation.evaluator import evaluate
    from deeplab_jax.parallel import processes
    from deeplab_jax.workdir import layout

    if args.preset is not None:
        network = pretrained.load(args.preset)
        base = pretrained.preset_config(network)
    else:
        base = layout.read_config(args.workdir)
    config = parse_config(rest, base=base)
    if args.data is not None:
        config.data.name = args.data
    if args.data_dir is not None:
        config.data.data_dir = str(args.data_dir)
    scores = evaluate(args.preset or args.workdir, config=config, split=args.split)
    if args.json is not None and processes.is_leader():
        write_json(args.json, scores)
    _report(scores, args.workdir, console)


def _predict(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    sources = [path for path in args.inputs if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()]
    images = [path for path in args.inputs if path not in sources]
    sources += [] if args.camera is None else [args.camera]
    if not args.inputs and not sources:
        raise UsageError("nothing to label: give images, folders, videos or --camera; see `deeplab-jax predict --help`")
    if args.smooth is not None and not sources:
        raise UsageError("--smooth is for videos, and there is none")
    from deeplab_jax import pretrained
    from deeplab_jax.inference import video
    from deeplab_jax.inference.files import predict_files, result_paths
    from deeplab_jax.inference.predictor import Predictor
    from deeplab_jax.workdir import layout

    targets = [video.overlay_path(source, args.output) for source in sources]
    if len(set(targets)) < len(targets):
        raise UserError("two videos have one name; predict them into different --output folders")
    result_paths(images, args.output)  # what cannot be written is told before a network is loaded
    if args.workdir is not None:
        network, base = None, layout.read_config(args.workdir)
    else:
        network = pretrained.load(args.preset or pretrained.DEFAULT_PRESET)
        base = pretrained.preset_config(network)
    config = parse_config(rest, base=base)
    options = {"size": args.size, "window": args.window, "classes": args.classes, "flip": args.flip or config.eval.flip}
    options["scales"] = args.scales or tuple(config.eval.scales)
    if network is None:
        predictor = Predictor.from_pretrained(args.workdir, config=config, **options)
    else:
        predictor = Predictor.from_network(network, config, **options)
    if images:
        written = predict_files(predictor, images, args.output)
        console.print(f"{len(written) // 2} masks and overlays in {args.output}", soft_wrap=True)
    create_folder(args.output, "--output")
    for source, target in zip(sources, targets, strict=True):
        label = predictor.start_video(smoothing=1.0 if args.smooth is None else args.smooth)
        report = video.label_video(label, source, target, predictor.label_set, codec=args.codec)
        stages = ", ".join(f"{stage} {value:.1f} ms" for stage, value in report.milliseconds.items())
        console.print(
            f"{report.frames} frames in {report.path}, {report.frames_per_second:.1f} per second ({stages})",
            soft_wrap=True,
        )
        if report.interrupted and source != args.camera:
            _fail(f"interrupted; {report.path} ends there", 130)


def _benchmark_latency(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from deeplab_jax import pretrained
    from deeplab_jax.analysis.latency import latency_table, measure_latency

    prepare_jax()
    name = args.workdir or args.preset or pretrained.DEFAULT_PRESET
    network = pretrained.load(name)
    results = measure_latency(
        network,
        args.sizes or [network.image_size or (513, 513)],
        args.batches,
        compute_dtype=args.compute_dtype,
        repetitions=args.repetitions,
    )
    Console(width=None if sys.stdout.isatty() else 120).print(latency_table(results, f"{name}, {args.compute_dtype}"))
    if args.json is not None:
        write_json(args.json, {"results": [result._asdict() for result in results]})


def _demo(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    for option, value in (("--max-megabytes", args.max_megabytes), ("--max-megapixels", args.max_megapixels)):
        if value < 1:
            raise UsageError(f"{option} {value} must be at least 1")
    if not 0 <= args.port < 2**16:
        raise UsageError(f"--port {args.port} must be between 0 and 65535")
    _set_up_jax()
    from deeplab_jax.demo import page

    page.serve(
        args.preset,
        args.workdir,
        host=args.host,
        port=args.port,
        max_bytes=args.max_megabytes * 2**20,
        max_pixels=args.max_megapixels * 10**6,
        console=console,
    )


def _convert(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from deeplab_jax.pretrained import average, bundle, import_file

    network = average([import_file(file, args.format) for file in args.files])
    if args.size is not None:
        network = dataclasses.replace(network, image_size=args.size)
    bundle.save(network, args.output, half=args.half)
    for line in network.report:
        console.print(line, soft_wrap=True)
    what = f"{network.label_set.num_classes} classes" if network.label_set else "a backbone alone"
    console.print(f"{network.model.backbone}, {what}, in {args.output}", soft_wrap=True)


def _presets(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from deeplab_jax.pretrained.presets import presets_table

    Console(width=None if sys.stdout.isatty() else 160).print(presets_table())


def _summary(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    config = parse_config(rest)
    import jax

    from deeplab_jax.analysis.summary import mesh_table, summary_table

    out = Console(width=None if sys.stdout.isatty() else 140)
    out.print(summary_table(config, args.classes))
    if args.mesh is not None:
        out.print(mesh_table(config, args.classes, args.mesh or jax.device_count()))


def _aot(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    config = parse_config(rest)
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing runs: a TPU of this machine stays free
    jax.config.update("jax_enable_compilation_cache", False)  # how long it takes to compile is part of the answer
    from deeplab_jax.analysis import aot

    if args.batch_per_chip is not None and args.batch_per_chip < 1:
        raise UsageError(f"--batch-per-chip {args.batch_per_chip} must be at least 1")
    result = aot.analyze(
        config,
        args.topology,
        num_classes=args.classes,
        batch_per_chip=args.batch_per_chip,
        inference=args.inference,
        search=args.find_batch,
    )
    out = Console(width=None if sys.stdout.isatty() else 140)
    for table in result.tables():
        out.print(table)
    if args.json is not None:
        write_json(args.json, result.to_json())


def _export(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # a program is written, for all platforms; nothing runs
    from deeplab_jax import export, pretrained

    network = pretrained.load(args.workdir or args.preset or pretrained.DEFAULT_PRESET)
    size, batch = args.size, args.batch
    if size is None:
        size = network.image_size
    if batch is None and args.to == "tflite":
        batch = 1
    options = export.ExportOptions(
        size=None if size == ANY else size,
        batch=None if batch == ANY else batch,
        argmax=args.argmax,
        uint8=args.uint8,
    )
    values = export.export_network(network, args.to, args.output, options)
    given, made = ("x".join(map(str, values[side]["shape"])) for side in ("input", "output"))
    console.print(
        f"{args.output}: {values['input']['dtype']} images {given} to {values['output']['dtype']} "
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
    )


def _data_check(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from deeplab_jax.data.check import check, report_tables

    report = check(args.name, data_dir=args.data_dir, source=args.source)
    out = Console(highlight=False)
    for table in report_tables(report):
        out.print(table)
    if not report.ok:
        problems = sum(len(split.problems) for split in report.splits.values())
        raise UserError(
            f"{args.name} has {problems} wrong examples and {len(report.leaks)} leaks; see the tables above"
        )


def _data_show(args: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from deeplab_jax import data, visualization

    if args.output.exists():
        raise UserError(f"{args.output} exists; choose another --output or remove it")
    source = data.open_source(args.name, args.split, data_dir=args.data_dir)
    if args.count < 1:
        raise UsageError(f"--count {args.count} must be at least 1")
    count = min(args.count, len(source))
    images, label_maps = zip(
        *data.decode_examples(source, [i * len(source) // count for i in range(count)]), strict=True
    )
    visualization.plot_segmentation_mask_gallery(images, label_maps, label_set=source.label_set, path=args.output)
    console.print(f"{count} of {len(source)} examples of {args.name}/{args.split} in {args.output}", soft_wrap=True)


def _report(scores: dict, workdir: pathlib.Path | None, console: Console) -> None:
    where = f"; see metrics.json and gallery.png in {workdir}" if workdir is not None else ""
    console.print(
        f"mean IoU {scores['mean_iou']:.4f}, pixel accuracy {scores['pixel_accuracy']:.4f}, loss {scores['loss']:.4f} "
        f"on {scores['num_images']} images{where}",
        soft_wrap=True,
    )


def _fail(message: object, code: int) -> NoReturn:
    print(f"deeplab-jax: {' '.join(str(message).split())}", file=sys.stderr)
    _exit(code)


def _exit(code: int) -> NoReturn:
    if _SUPERVISED in os.environ:  # the others may be waiting for this process in a collective operation
        exit_at_once(code)
    sys.exit(code)


def exit_at_once(code: int) -> NoReturn:
    """Ends this process without tearing anything down or waiting for anybody."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_HANDLERS = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "benchmark-latency": _benchmark_latency,
    "demo": _demo,
    "summary": _summary,
    "aot": _aot,
    "export": _export,
    "convert": _convert,
    "presets": _presets,
    "data prepare": _data_prepare,
    "data check": _data_check,
    "data show": _data_show,
}
