"""The command lines that reproduce a row."""

import shlex
from collections.abc import Mapping
from typing import Any

from deeplab_jax.data import get_dataset
from deeplab_jax.papers.configs import training_config
from deeplab_jax.papers.rows import Row


def row_commands(row: Row) -> list[str]:
    """Returns the commands that prepare the data, train and evaluate a row, and that evaluate its public weights.

    None of them names a row, so they can be changed. `deeplab-jax papers run` does the same as the second and third.

    Raises:
      UserError: the row's config does not exist.
    """
    config = training_config(row)
    changed = dict(row.train) | ({} if row.init is None else {"train.init_from": row.init})
    workdir = f"runs/{row.id}"
    split = [] if row.split is None else ["--split", row.split]
    commands = [
        prepare_command(config.data.name, config.data.train_split),
        _join("train", "--config", row.config, *_overrides(changed), "--workdir", workdir),
        _join("evaluate", "--workdir", workdir, *split, *_overrides(row.evaluate)),
    ]
    if row.weights is not None:
        data = ["--data", config.data.name, "--split", row.split or config.data.eval_split]
        commands.append(_join("evaluate", "--preset", row.weights, *data, *_overrides(row.evaluate)))
    return commands


def prepare_command(name: str, train_split: str, data_dir: str | None = None) -> str:
    """Returns the command that prepares a data set.

    Args:
      name: `data.name` of a config.
      train_split: `data.train_split` of the config.
      data_dir: folder of prepared data sets; None for the default.

    Raises:
      UserError: the data set does not exist.
    """
    options = [] if get_dataset(name).archives else ["--source", name]
    if train_split.startswith("trainaug"):
        options += ["--sbd-source", "benchmark.tgz"]
    if data_dir is not None:
        options += ["--data-dir", data_dir]
    return _join("data", "prepare", name, *options)


def _overrides(fields: Mapping[str, Any]) -> list[str]:
    return [f"--config.{path}={value}" for path, value in fields.items()]


def _join(*words: str) -> str:
    return shlex.join(["deeplab-jax", *words])
