"""`deeplab-jax evaluate`."""

import argparse
import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deeplab_jax.cli import arguments, exits, launch, malloc
from deeplab_jax.cli.command import Command

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from deeplab_jax.pretrained import PretrainedNetwork


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    arguments.add_network(parser)
    arguments.add_checkpoint(parser)
    parser.add_argument("--data", metavar="NAME", help="data set (default: the run's own)")
    arguments.add_data_dir(parser)
    parser.add_argument("--split", help="split of the data set (default: data.eval_split of the config)")
    arguments.add_json(parser)
    launch.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluates, and logs the scores."""
    from deeplab_jax import config as config_lib
    from deeplab_jax.cli import compilation_cache
    from deeplab_jax.cli.config_flags import parse_config

    malloc.prepare_jax()  # before anything creates JAX's backend
    compilation_cache.enable()
    launch.join_processes(args, parse_config(args.config_arguments, base=config_lib.base_config()))
    from deeplab_jax import pretrained
    from deeplab_jax.workdir import layout

    network = pretrained.load(args.preset, checkpoint=args.checkpoint) if args.workdir is None else None
    base = layout.read_config(args.workdir) if network is None else pretrained.preset_config(network)
    config = parse_config(args.config_arguments, base=base)
    if args.data is not None:
        config.data.name = args.data
    if args.data_dir is not None:
        config.data.data_dir = str(args.data_dir)
    with _end_on_signals():
        _evaluate(args, config, network)


@contextlib.contextmanager
def _end_on_signals() -> Iterator[None]:
    """Makes signals end the evaluation at once. In a run of several processes, the launcher reports them."""
    if exits.SUPERVISED not in os.environ:
        with exits.notice_signals():
            yield
        return
    # JAX's coordination service has taken SIGTERM, and only a training asks it for signals.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _evaluate(args: argparse.Namespace, config: "ConfigDict", network: "PretrainedNetwork | None") -> None:
    from deeplab_jax.cli import output
    from deeplab_jax.errors import UserError
    from deeplab_jax.evaluation.evaluator import evaluate_network, evaluate_workdir
    from deeplab_jax.parallel import processes

    place, failure = None, None
    if network is None:
        result = evaluate_workdir(args.workdir, config=config, split=args.split, checkpoint=args.checkpoint)
        scores = result.values
        try:
            result.save()
            place = f"{' and '.join(result.names)} in {args.workdir}"
        except UserError as error:  # reported after the scores, which took longer than anything else
            failure = error
    else:
        scores = evaluate_network(network, args.preset, config=config, split=args.split)
    output.log_scores(scores, place)
    if processes.is_leader():
        output.show([], scores, args.json)
    if failure is not None:
        raise failure


COMMAND = Command(
    name="evaluate",
    summary="Evaluate a trained network on every image of a split.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory="reduce eval.batch_size, or use a smaller eval.image_size or fewer eval.scales",
    examples=(
        "evaluate --workdir runs/quickstart",
        "evaluate --preset deeplabv3_resnet50_coco --data voc2012_segmentation --split val",
    ),
    takes_config=True,
    lists=("presets", "data sets"),
    note=malloc.NOTE,
)
