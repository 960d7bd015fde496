"""`deeplab-jax train`."""

import argparse

from deeplab_jax.cli import arguments, exits, launch, malloc
from deeplab_jax.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--workdir",
        type=arguments.path,
        required=True,
        help="folder for checkpoints, metrics and plots; if it holds a run, the run is resumed",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="continue a run, also a finished one, for another train.duration; the learning rate goes on where the "
        "schedule of the new duration is at the current step",
    )
    launch.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Trains, and logs the final scores."""
    from deeplab_jax.cli import compilation_cache
    from deeplab_jax.cli.config_flags import parse_config
    from deeplab_jax.cli.output import log_scores

    malloc.prepare_jax()  # before anything creates JAX's backend
    compilation_cache.enable()
    config = parse_config(args.config_arguments)
    launch.join_processes(args, config)
    from deeplab_jax.training import loop
    from deeplab_jax.workdir import layout
    from deeplab_jax.workdir.choice import best_checkpoint

    with exits.notice_signals("; run the same command again to resume") as preemption:
        scores = loop.train(config, args.workdir, preemption=preemption, extend=args.extend)
    workdir = layout.last_stage(args.workdir)
    place = f"metrics.json and gallery.png in {workdir}"
    best = best_checkpoint(workdir)
    if best is not None:
        step, score = best
        place += f"; the best checkpoint (--checkpoint best) is that of step {step}, mean IoU {score:.4f}"
    log_scores(scores, place)


COMMAND = Command(
    name="train",
    summary="Train a network, or resume the training run in a workdir.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory=(
        "reduce data.batch_size, raise train.accumulate_steps (same batch, smaller parts), set train.remat=units, or "
        "reduce data.image_size"
    ),
    examples=(
        "train --config quickstart --workdir runs/quickstart",
        "train --config finetune_folder:batch=2 --config.data.data_dir=data --workdir runs/photos",
    ),
    takes_config=True,
    needs_config=True,
    lists=("built-in configs", "data sets"),
    note=malloc.NOTE,
)
