"""`deeplab-jax sweep`."""

import argparse
from typing import Any

from deeplab_jax.cli import arguments, exits, malloc, runs, train
from deeplab_jax.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--grid",
        type=_parse_grid,
        action="append",
        required=True,
        metavar="FIELD=VALUE,VALUE,...",
        help="config field and its values; give it again for another field, to train every combination",
    )
    parser.add_argument(
        "--workdir",
        type=arguments.path,
        required=True,
        help="folder that gets a workdir for each run; runs that are finished are skipped, others are resumed",
    )
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Trains the runs one after another and prints their table.

    Raises:
      UserError: a run failed.
    """
    from deeplab_jax.cli import compilation_cache
    from deeplab_jax.cli.config_flags import parse_config
    from deeplab_jax.errors import UserError

    malloc.prepare_jax()  # before anything creates JAX's backend
    compilation_cache.enable()
    config = parse_config(args.config_arguments)
    grid = _read_values(args)
    from deeplab_jax.training import sweep

    with exits.notice_signals("; run the same command again to resume") as preemption:
        outcomes = sweep.sweep(config, grid, args.workdir, preemption=preemption)
    failed = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error is not None]
    if len(failed) < len(outcomes):
        runs.show_runs(args.workdir, args.json)
    if failed:
        raise UserError(f"{len(failed)} of {len(outcomes)} runs failed ({'; '.join(failed)})")


def _read_values(args: argparse.Namespace) -> dict[str, list[Any]]:
    """Reads the values of the grid as overrides of the config are read.

    Raises:
      UsageError: a field does not exist or is given twice, or a value has the wrong type.
    """
    from deeplab_jax import config as config_lib
    from deeplab_jax.cli.config_flags import parse_config
    from deeplab_jax.errors import UsageError

    grid: dict[str, list[Any]] = {}
    for field, texts in args.grid:
        if field in grid:
            raise UsageError(f"--grid {field} is given twice; list all of its values in one")
        parsed = (parse_config([*args.config_arguments, f"--config.{field}={text}"]) for text in texts)
        grid[field] = [config_lib.get_field(config, field) for config in parsed]
    return grid


def _parse_grid(text: str) -> tuple[str, list[str]]:
    """Parses `FIELD=VALUE,VALUE,...`. Commas inside parentheses or quotes belong to a value."""
    field, equals, values = text.removeprefix("config.").partition("=")
    found = _split(values)
    if not field or not equals or not all(found):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FIELD=VALUE,VALUE,... such as optimizer.learning_rate=0.01,0.02"
        )
    return field, found


def _split(text: str) -> list[str]:
    values, depth, quote = [""], 0, None
    for character in text:
        if quote is None and depth == 0 and character == ",":
            values.append("")
            continue
        values[-1] += character
        if quote is not None:
            quote = None if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([") - (character in ")]")
    return [value.strip() for value in values]


COMMAND = Command(
    name="sweep",
    summary="Train every combination of some config fields' values, compiling once for those that allow it.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory=train.COMMAND.when_out_of_memory,
    examples=(
        "sweep --config quickstart --grid optimizer.learning_rate=0.01,0.02,0.05 --workdir runs/sweep",
        "sweep --config quickstart --grid optimizer.learning_rate=0.01,0.02 --grid data.image_size='(96,96),(128,128)' "
        "--workdir runs/sizes --json",
    ),
    takes_config=True,
    needs_config=True,
    lists=("built-in configs", "data sets"),
    note=malloc.NOTE,
)
