"""Data sets: preparing them, checking them, and streaming them to the network."""

import os
import pathlib

from ml_collections import ConfigDict

from deeplab_jax.data.sources.synthetic import SPLIT_SIZES, SyntheticSource
from deeplab_jax.errors import UserError, suggest

#: Values of `data.name`.
SOURCES = ("sbd", "voc2012_segmentation", "camvid", "folder", "synthetic")


def default_data_dir() -> pathlib.Path:
    """Where data sets are prepared unless told otherwise: $DEEPLAB_JAX_DATA, or deeplab_jax_data in the home folder."""
    return pathlib.Path(os.environ.get("DEEPLAB_JAX_DATA") or pathlib.Path.home() / "deeplab_jax_data")


def open_source(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    num_examples: int | None = None,
    image_size: tuple[int, int] | None = None,
):
    """One split of a data set, ready to be read by position.

    Args:
      name: one of `SOURCES`.
      split: of the data set; of a prepared one also several, one after the other: "train+val".
      data_dir: where data sets are prepared; default: `default_data_dir`.
      num_examples: of generated data sets, in `train`.
      image_size: (height, width) of generated images.

    Raises:
      UserError: no such data set or split, or it is not prepared.
    """
    directory = default_data_dir() if data_dir is None else pathlib.Path(data_dir)
    splits = split_names(name, data_dir=directory)
    parts = [split] if name == "synthetic" else split.split("+")
    for part in parts:
        if part not in splits:
            where = "" if name == "synthetic" else f" in {directory}"
            raise UserError(f"{name}{where} has no split {part!r}{suggest(part, splits)}")
    if len(set(parts)) < len(parts):
        raise UserError(f"{split!r} names a split twice")
    if name == "synthetic":
        return SyntheticSource(split, num_examples if split == "train" else None, image_size)
    # TFDS takes most of a second to import: only for data sets that need it.
    from deeplab_jax.data.builder import PreparedSource, prepared_folder

    return PreparedSource(prepared_folder(name, directory), split)


def split_names(name: str, *, data_dir: str | os.PathLike | None = None) -> list[str]:
    """The splits of a data set.

    Args:
      name: one of `SOURCES`.
      data_dir: where data sets are prepared; default: `default_data_dir`.

    Raises:
      UserError: no such data set, or it is not prepared.
    """
    if name not in SOURCES:
        raise UserError(f"data set {name!r} does not exist{suggest(name, SOURCES)}")
    if name == "synthetic":
        return list(SPLIT_SIZES)
    from deeplab_jax.data.builder import PreparedSource, prepared_folder

    directory = default_data_dir() if data_dir is None else pathlib.Path(data_dir)
    folder = prepared_folder(name, directory)
    if not folder.is_dir():
        raise UserError(
            f"data set {name} is not prepared in {directory}; "
            f"run `deeplab-jax data prepare {name} --data-dir {directory}`"
        )
    return PreparedSource.splits(folder)


def open_split(config: ConfigDict, split: str):
    """The source of one split of the config's data set."""
    return open_source(
        config.data.name,
        split,
        data_dir=config.data.data_dir,
        num_examples=config.data.num_examples,
        image_size=config.data.image_size,
    )
