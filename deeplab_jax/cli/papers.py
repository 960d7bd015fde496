"""`deeplab-jax papers list`, `papers show`, `papers run` and `papers verify`."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from deeplab_jax.cli import arguments, exits, launch, malloc
from deeplab_jax.cli.command import Command
from deeplab_jax.errors import UsageError, UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from rich.table import Table

    from deeplab_jax.papers import Row

_COMMAND_WIDTH = 100


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `papers list`."""
    parser.add_argument("--paper", metavar="NAME", help="only the rows of this publication, see below")
    parser.add_argument("--table", metavar="NAME", help="only the rows of tables with this number or name")
    parser.add_argument("--state", metavar="STATE", help="only the rows in this state, such as `needs data`")
    arguments.add_json(parser)


def list_(args: argparse.Namespace) -> None:
    """Prints a table of rows."""
    from deeplab_jax import papers
    from deeplab_jax.cli import output
    from deeplab_jax.errors import suggest

    if args.state is not None and args.state not in papers.STATES:
        raise UserError(f"state {args.state!r} does not exist{suggest(args.state, papers.STATES)}")
    rows = papers.list_rows(args.paper, args.table)
    rows = [row for row in rows if args.state in (None, papers.state_of(row))]
    output.show([_rows_table(rows)], [_row_values(row) for row in rows], args.json)


def add_show_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `papers show`."""
    _add_row(parser)
    arguments.add_json(parser)


def show(args: argparse.Namespace) -> None:
    """Prints a row: network, costs, protocol and commands."""
    from deeplab_jax import papers
    from deeplab_jax.cli import output

    row = papers.find_row(args.row)
    costs, protocol = papers.row_costs(row), papers.describe_protocol(row)
    commands = papers.row_commands(row)
    values = _row_values(row) | {"protocol": protocol, "costs": dataclasses.asdict(costs), "commands": commands}
    output.show([_facts_table(row, costs, protocol), _commands_table(row, commands)], values, args.json)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `papers run`."""
    _add_row(parser)
    parser.add_argument(
        "--workdir",
        type=arguments.path,
        required=True,
        help="folder of the training run; if it holds a run, the run is resumed, and a finished run is only evaluated",
    )
    _add_data(parser)
    _add_report(parser)
    arguments.add_json(parser)
    launch.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Trains and evaluates a row, and prints measured beside published scores."""
    from deeplab_jax import papers
    from deeplab_jax.cli import compilation_cache

    row = papers.find_row(args.row)
    malloc.prepare_jax()  # before anything creates JAX's backend
    compilation_cache.enable()
    config = _parse_overrides(args, papers.training_config(row))
    launch.join_processes(args, config)
    if row.cannot is not None:
        raise UserError(f"row {row.id} cannot be reproduced: {row.cannot}")
    if row.pretraining is not None and config.train.init_from is None:
        raise UserError(
            f"row {row.id} starts from weights that nobody publishes ({row.pretraining}); give your own with "
            "--config.train.init_from=FOLDER"
        )
    evaluation = _parse_overrides(args, papers.evaluation_config(row, config))
    papers.check_data(row, config, config.data.train_split)
    papers.check_data(row, evaluation, evaluation.data.eval_split)
    from deeplab_jax.evaluation.evaluator import evaluate_workdir
    from deeplab_jax.training import loop

    with exits.notice_signals("; run the same command again to resume") as preemption:
        loop.train(config, args.workdir, preemption=preemption)
    result = evaluate_workdir(args.workdir, config=evaluation, num_worst=_num_worst(args))
    result.save(args.report)
    place = f"{' and '.join(result.names)} in {args.workdir}"
    _report(args, row, result.values, place if args.report is None else f"{place}, the report in {args.report}")


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `papers verify`."""
    _add_row(parser)
    parser.add_argument(
        "--preset",
        type=arguments.network,
        metavar="NAME|FOLDER",
        help="weights to evaluate (default: the row's own), such as a folder that `deeplab-jax convert` wrote "
        "or hf://owner/name",
    )
    _add_data(parser)
    parser.add_argument(
        "--tolerance",
        type=arguments.points,
        metavar="POINTS",
        help="fail if the mean IoU differs from the published one by more percentage points",
    )
    _add_report(parser)
    arguments.add_json(parser)


def verify(args: argparse.Namespace) -> None:
    """Evaluates the public weights of a row, and prints measured beside published scores."""
    from deeplab_jax import papers, pretrained
    from deeplab_jax.cli import compilation_cache

    row = papers.find_row(args.row)
    name = args.preset or row.weights
    if name is None:
        raise UserError(f"row {row.id} has no public weights; train it with `deeplab-jax papers run {row.id}`")
    if args.preset is None and row.cannot is not None:
        raise UserError(f"row {row.id} cannot be reproduced: {row.cannot}")
    malloc.prepare_jax()  # before anything creates JAX's backend
    compilation_cache.enable()
    network = pretrained.load(name)
    config = _parse_overrides(args, papers.weights_config(row, network))
    papers.check_data(row, config, config.data.eval_split)
    from deeplab_jax.evaluation.evaluator import evaluate_network

    with exits.notice_signals():
        result = evaluate_network(network, name, config=config, num_worst=_num_worst(args))
    result.save(args.report)
    differences = _report(args, row, result.values, args.report and f"the report in {args.report}")
    difference = differences.get("mean_iou")
    if args.tolerance is not None:
        if difference is None:
            raise UserError(f"row {row.id} publishes no mean IoU to compare with; leave out --tolerance")
        if abs(difference) > args.tolerance:
            raise UserError(
                f"the mean IoU differs from the published one by {difference:+.2f} points, more than the tolerance "
                f"{args.tolerance:g}"
            )


def _add_row(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("row", metavar="ROW", help="id of a row, see `deeplab-jax papers list`")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="NAME", help="data set (default: the row's own)")
    arguments.add_data_dir(parser)
    parser.add_argument("--split", help="split to evaluate on (default: the row's own)")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report", type=arguments.path, metavar="FOLDER", help="also write the report of `evaluate --report` to FOLDER"
    )


def _num_worst(args: argparse.Namespace) -> int | None:
    from deeplab_jax.evaluation.details import NUM_WORST

    return None if args.report is None else NUM_WORST


def _parse_overrides(args: argparse.Namespace, config: "ConfigDict") -> "ConfigDict":
    """Applies `--config.group.field=value`, then the arguments about data."""
    from deeplab_jax.cli.config_flags import parse_config

    if any(item == "--config" or item.startswith("--config=") for item in args.config_arguments):
        raise UsageError(f"row {args.row} has its own config; change its fields with --config.GROUP.FIELD=VALUE")
    config = parse_config(args.config_arguments, base=config)
    if args.data is not None:
        config.data.name = args.data
    if args.data_dir is not None:
        config.data.data_dir = str(args.data_dir)
    if args.split is not None:
        config.data.eval_split = args.split
    return config


def _report(args: argparse.Namespace, row: "Row", scores: dict[str, Any], place: str | None) -> dict[str, float | None]:
    """Shows measured beside published scores; returns the differences by metric."""
    from deeplab_jax import papers
    from deeplab_jax.cli import output
    from deeplab_jax.parallel import processes

    output.log_scores(scores, place)
    compared = papers.compare(row, scores)
    if processes.is_leader():
        values = {
            "row": row.id,
            "images": scores["num_images"],
            "published_images": row.images,
            "scores": [dataclasses.asdict(one) | {"difference": one.difference} for one in compared],
        }
        output.show([_comparison_table(row, compared, scores["num_images"])], values, args.json)
    return {one.metric: one.difference for one in compared}


def _rows_table(rows: "list[Row]") -> "Table":
    from rich.table import Table

    from deeplab_jax import papers

    table = Table(title="Published rows, scores in percent")
    table.add_column("row", no_wrap=True)  # ids are copied whole
    table.add_column("table", overflow="fold")
    table.add_column("what", overflow="fold")
    table.add_column("mean IoU", justify="right")
    table.add_column("multiply-adds", justify="right")
    table.add_column("state", no_wrap=True)
    for row in rows:
        score, cost = row.published.get("mean_iou"), row.multiply_adds
        table.add_row(
            row.id,
            f"{row.paper} {row.table}",
            row.name,
            "–" if score is None else f"{score:.2f}",
            "–" if cost is None else f"{cost:,.2f} G",
            papers.state_of(row),
        )
    return table


def _row_values(row: "Row") -> dict[str, Any]:
    from deeplab_jax import papers

    measured = papers.measurement_of(row)
    return dataclasses.asdict(row) | {
        "state": papers.state_of(row),
        "measured": None if measured is None else dataclasses.asdict(measured),
    }


def _facts_table(row: "Row", costs: Any, protocol: str) -> "Table":
    from rich.table import Table

    from deeplab_jax import papers

    state = papers.state_of(row)
    facts = [
        ("table", f"{row.paper} {row.table}: {row.title}"),
        ("row", row.name),
        ("source", row.source),
        ("published", ", ".join(f"{papers.METRICS[name]} {score:g} %" for name, score in row.published.items())),
        ("state", f"{state}: {row.cannot or papers.STATES[state]}"),
        ("protocol", protocol),
        ("differs", row.differs),
        ("parameters", _beside(f"{costs.parameters:,.3f} M", row.parameters, " M")),
        (
            "multiply-adds",
            _beside(f"{costs.multiply_adds:,.2f} G, {costs.padded:,.2f} G with padding", row.multiply_adds, " G"),
        ),
        ("data", row.data),
        ("starts from", row.init or row.pretraining or "random weights"),
        ("public weights", row.weights),
    ]
    if measured := papers.measurement_of(row):
        original = f"; the original, {measured.original_source}: {_scores(measured.original)}"
        facts.append(
            (
                "measured here",
                f"{_scores(measured.scores)} on {measured.data}{original if measured.original else ''} "
                f"({measured.hardware}, commit {measured.commit}: {measured.command})",
            )
        )
    table = Table(title=row.id, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts:
        if fact:
            table.add_row(name, fact)
    return table


def _commands_table(row: "Row", commands: list[str]) -> "Table":
    """A table without borders, whose lines a shell can run."""
    from rich.table import Table

    table = Table(title="Commands", title_justify="left", box=None, show_header=False, pad_edge=False)
    for command in [*commands, *_own_commands(row)]:
        for line in _wrap(command):
            table.add_row(line)
    return table


def _wrap(command: str) -> list[str]:
    """Breaks a long command before its options."""
    head, *options = command.split(" --")
    lines = [head]
    for option in options:
        if len(lines[-1]) + len(option) < _COMMAND_WIDTH:
            lines[-1] += f" --{option}"
        else:
            lines[-1] += " \\"
            lines.append(f"    --{option}")
    return lines


def _own_commands(row: "Row") -> list[str]:
    own = [] if row.cannot else [f"deeplab-jax papers run {row.id} --workdir runs/{row.id}"]
    return own + ([f"deeplab-jax papers verify {row.id}"] if row.weights and not row.cannot else [])


def _beside(counted: str, published: float | None, unit: str) -> str:
    return f"{counted} (published: {'–' if published is None else f'{published:,g}{unit}'})"


def _scores(scores: "dict[str, float]") -> str:
    from deeplab_jax import papers

    return ", ".join(f"{papers.METRICS[name]} {score:.2f} %" for name, score in scores.items())


def _comparison_table(row: "Row", compared: Any, images: int) -> "Table":
    from rich.table import Table

    from deeplab_jax import papers

    other = "" if images == row.images else f"; the published ones are of {row.images:,}"
    table = Table(title=f"{row.id}, percent", caption=f"measured on {images:,} images{other}", min_width=64)
    table.add_column("score")
    for column in ("measured", "published", "difference"):
        table.add_column(column, justify="right")
    for one in compared:
        cells = (one.measured, one.published)
        difference = "–" if one.difference is None else f"{one.difference:+.2f}"
        table.add_row(
            papers.METRICS[one.metric], *("–" if cell is None else f"{cell:.2f}" for cell in cells), difference
        )
    return table


_WHEN_OUT_OF_MEMORY = "reduce eval.batch_size and data.batch_size, or use smaller data.image_size and eval.image_size"

COMMANDS = (
    Command(
        name="papers list",
        summary="List the published rows of the papers: score, multiply-adds, and whether they run here.",
        add_arguments=add_list_arguments,
        run=list_,
        examples=("papers list --paper v3plus --table 3", "papers list --state runs --json"),
        lists=("papers",),
    ),
    Command(
        name="papers show",
        summary="Show a row: its network beside published figures, its protocol, and the commands that reproduce it.",
        add_arguments=add_show_arguments,
        run=show,
        examples=("papers show v3plus-3-16-16-decoder", "papers show v3-6-os8 --json"),
        lists=("papers",),
    ),
    Command(
        name="papers run",
        summary="Train and evaluate a row under its protocol, and print measured beside published scores.",
        add_arguments=add_run_arguments,
        run=run,
        when_out_of_memory=_WHEN_OUT_OF_MEMORY,
        examples=(
            "papers run v3plus-3-16-16-decoder --data-dir data --workdir runs/v3plus",
            "papers run v3-6-os8 --workdir runs/v3 --config.data.batch_size=8",
        ),
        takes_config=True,
        own_config=True,
        lists=("papers",),
        note=malloc.NOTE,
    ),
    Command(
        name="papers verify",
        summary="Evaluate the public weights of a row under its protocol; print measured beside published scores.",
        add_arguments=add_verify_arguments,
        run=verify,
        when_out_of_memory=_WHEN_OUT_OF_MEMORY,
        examples=(
            "papers verify zoo-8bit-mobilenet-v2 --data-dir data",
            "papers verify zoo-voc-mobilenet-v2 --tolerance 0.5 --report reports/zoo",
        ),
        takes_config=True,
        own_config=True,
        lists=("papers",),
        note=malloc.NOTE,
    ),
)
