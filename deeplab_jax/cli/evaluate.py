"""`deeplab-jax evaluate`."""

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from deeplab_jax.cli import arguments, exits, launch, malloc
from deeplab_jax.cli.command import Command
from deeplab_jax.errors import UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from rich.table import Table

    from deeplab_jax.evaluation.report import Result
    from deeplab_jax.labels import LabelSet
    from deeplab_jax.parallel.preemption import Preemption
    from deeplab_jax.pretrained import PretrainedNetwork

# `--report` without a folder; every path is one that a user may give.
_IN_WORKDIR = True

_AGAIN = "run the same command again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    arguments.add_network(parser)
    arguments.add_checkpoint(parser)
    parser.add_argument("--data", metavar="NAME", help="data set (default: the run's own)")
    arguments.add_data_dir(parser)
    parser.add_argument("--split", help="split of the data set (default: data.eval_split of the config)")
    _add_report(parser)
    arguments.add_json(parser)
    launch.add_arguments(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report",
        type=arguments.path,
        nargs="?",
        const=_IN_WORKDIR,
        metavar="FOLDER",
        help="also score boundaries, calibration and single images, and write a page with plots and the worst images "
        "to FOLDER (default: `report` in the workdir)",
    )
    parser.add_argument(
        "--worst",
        type=arguments.count,
        metavar="N",
        help="number of images with the lowest scores in the report (default: 20)",
    )


def run(args: argparse.Namespace) -> None:
    """Evaluates, and shows the scores."""
    _check_report(args)
    from deeplab_jax import config as config_lib
    from deeplab_jax.cli import compilation_cache
    from deeplab_jax.cli.config_flags import parse_config

    malloc.prepare_jax()  # before anything creates JAX's backend
    compilation_cache.enable()
    launch.join_processes(args, parse_config(args.config_arguments, base=config_lib.base_config()), resume=_AGAIN)
    from deeplab_jax import pretrained
    from deeplab_jax.workdir import layout

    arguments.split_workdir(args)
    network = pretrained.load(args.preset, checkpoint=args.checkpoint) if args.workdir is None else None
    base = layout.read_config(args.workdir) if network is None else pretrained.preset_config(network)
    config = parse_config(args.config_arguments, base=base)
    if args.data is not None:
        config.data.name = args.data
    if args.data_dir is not None:
        config.data.data_dir = str(args.data_dir)
    with exits.notice_signals(finishing="finishing this batch and saving the counts") as preemption:
        _evaluate(args, config, network, preemption)


def _check_report(args: argparse.Namespace) -> None:
    """Checks the arguments of the report before any work starts."""
    if args.worst is not None and args.report is None:
        raise UsageError("--worst applies to the report; add --report")
    if args.report is _IN_WORKDIR and args.workdir is None:
        raise UsageError("a preset has no workdir for the report; give --report a folder")
    if isinstance(args.report, pathlib.Path):
        from deeplab_jax.files import check_new_folder

        check_new_folder(args.report)


def _evaluate(
    args: argparse.Namespace,
    config: "ConfigDict",
    network: "PretrainedNetwork | None",
    preemption: "Preemption",
) -> None:
    from deeplab_jax.cli import output
    from deeplab_jax.errors import UserError
    from deeplab_jax.evaluation.details import NUM_WORST
    from deeplab_jax.evaluation.evaluator import evaluate_network, evaluate_workdir
    from deeplab_jax.parallel import processes

    options = {"config": config, "split": args.split, "preemption": preemption}
    if args.report is not None:
        options["num_worst"] = args.worst or NUM_WORST
    if network is None:
        result = evaluate_workdir(args.workdir, checkpoint=args.checkpoint, **options)
    else:
        result = evaluate_network(network, args.preset, **options)
    folder = args.workdir / f"report{result.suffix}" if args.report is _IN_WORKDIR else args.report
    failure = None
    try:
        result.save(folder)
    except UserError as error:  # reported after the scores, which took longer than anything else
        failure = error
    output.log_scores(result.values, None if failure else _place(result, folder))
    if processes.is_leader():
        output.show([_classes_table(result.scores, result.label_set)], result.values, args.json)
    if failure is not None:
        raise failure


def _place(result: "Result", folder: pathlib.Path | None) -> str | None:
    """Returns where all scores are."""
    from deeplab_jax.evaluation.report_files import PAGE

    places = [] if result.workdir is None else [f"{' and '.join(result.names)} in {result.workdir}"]
    if folder is not None:
        places.append(str(folder / PAGE))
    return ", ".join(places) or None


def _classes_table(scores: "dict[str, Any]", label_set: "LabelSet") -> "Table":
    """The scores of every class, and their means."""
    from rich.table import Table

    columns = {"IoU": "iou", "Dice": "dice", "precision": "precision", "recall": "recall"}
    if "per_class_boundary_iou" in scores:
        columns["boundary IoU"] = "boundary_iou"
    table = Table(title="Classes, percent", show_footer=True)
    table.add_column("class", footer="mean", overflow="fold")
    for title, name in columns.items():
        mean = scores["mean_accuracy" if name == "recall" else f"mean_{name}"]
        table.add_column(title, footer=_percent(mean), justify="right")
    for class_name in label_set.class_names:
        table.add_row(class_name, *(_percent(scores[f"per_class_{name}"][class_name]) for name in columns.values()))
    return table


def _percent(score: float | None) -> str:
    return "–" if score is None else f"{100 * score:.2f}"


COMMAND = Command(
    name="evaluate",
    summary="Evaluate a trained network on every image of a split.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory="reduce eval.batch_size, or use a smaller eval.image_size or fewer eval.scales",
    examples=(
        "evaluate --workdir runs/quickstart --report",
        "evaluate --preset deeplabv3_resnet50_coco --data voc2012_segmentation --split val",
    ),
    takes_config=True,
    lists=("presets", "data sets"),
    note=malloc.NOTE,
)
