"""The requirements of a row on this machine, and its protocol in words."""

from ml_collections import ConfigDict

from deeplab_jax import data
from deeplab_jax.errors import UserError
from deeplab_jax.papers.commands import prepare_command
from deeplab_jax.papers.configs import evaluation_config
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
        if name not in data.dataset_names():
            raise
        raise UserError(f"row {row.id} needs {name}, which is not prepared; {_preparation(config)}") from error
    missing = [part for part in split.split("+") if part not in known]
    if missing:
        hint = _preparation(config) if missing == ["trainaug"] else f"it has {', '.join(known)}"
        raise UserError(f"row {row.id} needs the split {missing[0]!r} of {name}, which is not prepared; {hint}")


def describe_protocol(row: Row) -> str:
    """Describes how the row is evaluated.

    Raises:
      UserError: the row's config does not exist.
    """
    config = evaluation_config(row)
    images = f"{config.data.name} {config.data.eval_split}, {row.images:,} images"
    return "; ".join([images, f"output stride {config.model.output_stride}", *data.describe_protocol(config)])


def _preparation(config: ConfigDict) -> str:
    command = prepare_command(config.data.name, config.data.train_split, config.data.data_dir)
    if data.get_dataset(config.data.name).archives:
        return f"run `{command}`"
    return f"download it from its publisher, and run `{command}` with the folder or archive of your copy"
