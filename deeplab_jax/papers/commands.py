"""The command lines that reproduce a row."""

import shlex
from collections.abc import Mapping
from typing import Any

from deeplab_jax.papers.configs import training_config
from deeplab_jax.papers.rows import Row

_FOLDERS = {"Cityscapes": "cityscapes", "ADE20K": "ade20k", "COCO with VOC's classes": "coco"}


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
        prepare_command(row, config.data.name, config.data.train_split),
        _join("train", "--config", row.config, *_overrides(changed), "--workdir", workdir),
        _join("evaluate", "--workdir", workdir, *split, *_overrides(row.evaluate)),
    ]
    if row.weights is not None:
        data = ["--data", config.data.name, "--split", row.split or config.data.eval_split]
        commands.append(_join("evaluate", "--preset", row.weights, *data, *_overrides(row.evaluate)))
    return commands


def prepare_command(row: Row, name: str, train_split: str, data_dir: Any = None) -> str:
    """Returns the command that prepares the row's data set.

    Args:
      row: the row.
      name: `data.name` of its config.
      train_split: `data.train_split` of its config.
      data_dir: folder of prepared data sets; None for the default.
    """
    options = []
    if row.data is not None:
        options += ["--source", _FOLDERS[row.data]]
    elif train_split.startswith("trainaug"):
        options += ["--sbd-source", "benchmark.tgz"]
    if data_dir is not None:
        options += ["--data-dir", str(data_dir)]
    return _join("data", "prepare", name, *options)


def _overrides(fields: Mapping[str, Any]) -> list[str]:
    return [f"--config.{path}={value}" for path, value in fields.items()]


def _join(*words: str) -> str:
    return shlex.join(["deeplab-jax", *words])
