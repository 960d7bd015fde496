"""The registry of data sets, and opening their splits by name."""

import os
import pathlib

from ml_collections import ConfigDict

from deeplab_jax.data.dataset import Dataset, Source
from deeplab_jax.data.prepared import PreparedSource, prepared_folder
from deeplab_jax.data.sources import (
    ade20k,
    camvid,
    cityscapes,
    coco_panoptic,
    coco_stuff,
    coco_voc,
    folder,
    oxford_pet,
    pascal_context,
    sbd,
    synthetic,
    voc2012_segmentation,
)
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.files import open_path
from deeplab_jax.labels import IGNORE_LABEL

_BUILT_IN = {
    dataset.name: dataset
    for dataset in (
        sbd.DATASET,
        voc2012_segmentation.DATASET,
        camvid.DATASET,
        cityscapes.DATASET,
        ade20k.DATASET,
        ade20k.DATASET_151,
        coco_stuff.DATASET,
        coco_stuff.DATASET_10K,
        coco_panoptic.DATASET,
        coco_voc.DATASET,
        coco_voc.DATASET_TORCHVISION,
        pascal_context.DATASET,
        pascal_context.DATASET_59,
        oxford_pet.DATASET,
        oxford_pet.DATASET_BINARY,
        oxford_pet.DATASET_IGNORE,
        folder.DATASET,
        synthetic.DATASET,
    )
}
_datasets = dict(_BUILT_IN)


def register_dataset(dataset: Dataset) -> Dataset:
    """Adds a data set, so that `config.data.name` and the `deeplab-jax data` commands know its name.

    Registering the same name again replaces the earlier entry, so a notebook cell can be run twice.

    Args:
      dataset: the new entry.

    Returns:
      `dataset` itself.

    Raises:
      UserError: a built-in data set has this name.
    """
    if dataset.name in _BUILT_IN:
        raise UserError(f"data set {dataset.name!r} is built in; choose another name")
    _datasets[dataset.name] = dataset
    return dataset


def get_dataset(name: str) -> Dataset:
    """The data set of this name.

    Raises:
      UserError: no such data set is registered.
    """
    if name not in _datasets:
        raise UserError(f"data set {name!r} does not exist{suggest(name, _datasets)}")
    return _datasets[name]


def dataset_names() -> list[str]:
    """The values of `config.data.name`: built-in data sets, then registered ones."""
    return list(_datasets)


def default_data_dir() -> pathlib.Path:
    """The default folder of prepared data sets: $DEEPLAB_JAX_DATA, or `deeplab_jax_data` in the home folder."""
    return open_path(os.environ.get("DEEPLAB_JAX_DATA") or pathlib.Path.home() / "deeplab_jax_data")


def open_source(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    num_examples: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> Source:
    """Opens one split of a data set.

    Args:
      name: one of `dataset_names`.
      split: the split's name. Prepared data sets also accept several, which are read one after the other: "train+val".
      data_dir: folder of prepared data sets; default: `default_data_dir`.
      num_examples: number of training examples, for generated data sets.
      image_size: (height, width) of the images, for generated data sets.

    Raises:
      UserError: the data set or the split does not exist or is empty, or the data set is not prepared.
    """
    dataset = get_dataset(name)
    data_dir = default_data_dir() if data_dir is None else open_path(data_dir)
    known = split_names(name, data_dir=data_dir)
    parts = split.split("+") if dataset.open_split is None else [split]
    for part in parts:
        if part not in known:
            where = f" in {data_dir}" if dataset.open_split is None else ""
            raise UserError(f"{name}{where} has no split {part!r}{suggest(part, known)}")
    if len(set(parts)) < len(parts):
        raise UserError(f"{split!r} names a split twice")
    if dataset.open_split is None:
        return PreparedSource(prepared_folder(name, data_dir), split)
    if num_examples is not None and num_examples < 1:
        raise UserError(f"data.num_examples is {num_examples}; it must be at least 1")
    source = dataset.open_split(split, data_dir=data_dir, num_examples=num_examples, image_size=image_size)
    if not len(source):
        raise UserError(f"split {split} of {name} has no examples")
    return source


def split_names(name: str, *, data_dir: str | os.PathLike | None = None) -> list[str]:
    """The names of a data set's splits.

    Args:
      name: one of `dataset_names`.
      data_dir: folder of prepared data sets; default: `default_data_dir`.

    Raises:
      UserError: the data set does not exist, or is not prepared.
    """
    dataset = get_dataset(name)
    if dataset.open_split is not None:
        return list(dataset.splits)
    data_dir = default_data_dir() if data_dir is None else open_path(data_dir)
    prepared = prepared_folder(name, data_dir)
    if not prepared.is_dir():
        raise UserError(
            f"data set {name} is not prepared in {data_dir}; "
            f"run `deeplab-jax data prepare {name} --data-dir {data_dir}`"
        )
    return PreparedSource.split_names(prepared)


def open_split(config: ConfigDict, split: str, *, needs_labels: bool = True) -> Source:
    """Opens one split of the data set that a config names, to train on it or to evaluate a network.

    Args:
      config: a whole config.
      split: the split's name.
      needs_labels: whether a split whose pixels are all ignored is an error.

    Raises:
      UserError: see `open_source`; or every pixel of the split is ignored.
    """
    source = open_source(
        config.data.name,
        split,
        data_dir=config.data.data_dir,
        num_examples=config.data.num_examples,
        image_size=config.data.image_size,
    )
    if needs_labels and isinstance(source, PreparedSource) and source.is_all_ignored:
        raise UserError(
            f"every pixel of {source.name}/{split} is ignored ({IGNORE_LABEL}), so there is nothing to train on or to "
            "evaluate; choose another split (`data.train_split`, `data.eval_split`), or label its masks"
        )
    return source
