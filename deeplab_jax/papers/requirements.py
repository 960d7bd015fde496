"""The requirements of a row on this machine, and its protocol in words."""

from ml_collections import ConfigDict

from deeplab_jax import data
from deeplab_jax.errors import UserError
from deeplab_jax.papers.commands import prepare_command
from deeplab_jax.papers.configs import evaluation_config, training_config
from deeplab_jax.papers.rows import Row


def check_data(row: Row, config: ConfigDict, split: str) -> None:
    """Checks that a data set is prepared and has a split, before anything slow starts.

    Args:
      row: the row.
      config: the config that will read it.
      split: name of the split, or several joined by `+`.

    Raises:
      UserError: it is not; the message says how to prepare it.
    """
    name, data_dir = config.data.name, config.data.data_dir
    try:
        known = data.split_names(name, data_dir=data_dir)
    except UserError as error:
        if name not in data.dataset_names() or name != training_config(row).data.name:
            raise
        raise UserError(f"row {row.id} needs {_data_set(row, name)}: {_preparation(row, config)}") from error
    missing = [part for part in split.split("+") if part not in known]
    if missing:
        hint = _preparation(row, config) if missing == ["trainaug"] else f"it has {', '.join(known)}"
        raise UserError(f"row {row.id} needs the split {missing[0]!r} of {name}, which is not prepared: {hint}")


def describe_protocol(row: Row) -> str:
    """Describes how the row is evaluated.

    Raises:
      UserError: the row's config does not exist.
    """
    config = evaluation_config(row)
    scales = [f"{scale:g}" for scale in config.eval.scales]
    size = config.eval.image_size if config.eval.protocol == "whole" else config.data.image_size
    parts = [
        f"{_data_set(row, config.data.name)} {config.data.eval_split}, {row.images:,} images",
        f"`{config.eval.protocol}` at {'x'.join(map(str, size)) if size else 'their own size'}",
        f"output stride {config.model.output_stride}",
        f"scale{'s' if len(scales) > 1 else ''} {', '.join(scales)}",
    ]
    return "; ".join(parts + (["mirrored too"] if config.eval.flip else []))


def _data_set(row: Row, name: str) -> str:
    return name if row.data is None else f"{row.data} (as `{name}`)"


def _preparation(row: Row, config: ConfigDict) -> str:
    command = prepare_command(row, config.data.name, config.data.train_split, config.data.data_dir)
    if row.data is not None:
        return (
            f"arrange it as images/, masks/ of class ids, classes.txt and lists of its splits (docs/data.md), "
            f"and run `{command}`"
        )
    return f"run `{command}`"
