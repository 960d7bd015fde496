"""The configs of a row: to train it, and to evaluate it under its protocol."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config import find_config, read_config_file
from deeplab_jax.papers.rows import Row
from deeplab_jax.pretrained import PretrainedNetwork, preset_config


def training_config(row: Row) -> ConfigDict:
    """Returns the config that trains a row.

    Raises:
      UserError: the config or one of its arguments does not exist.
    """
    name, _, argument = row.config.partition(":")
    config = read_config_file(find_config(name), argument)
    _set_fields(config, row.train)
    if row.init is not None:
        config.train.init_from = row.init
    return config


def evaluation_config(row: Row, base: ConfigDict | None = None) -> ConfigDict:
    """Returns the config that evaluates a row after its training.

    Args:
      row: the row.
      base: the config that trained it (default: `training_config(row)`).

    Raises:
      UserError: the config or one of its arguments does not exist.
    """
    config = training_config(row) if base is None else base.copy_and_resolve_references()
    _set_fields(config, row.evaluate)
    if row.split is not None:
        config.data.eval_split = row.split
    return config


def weights_config(row: Row, network: PretrainedNetwork) -> ConfigDict:
    """Returns the config that evaluates the row's published weights.

    The network, its normalization and the size of its input are those of the weights; data and protocol are the row's.

    Args:
      row: the row.
      network: the weights, the result of `deeplab_jax.pretrained.load`.

    Raises:
      UserError: the config or one of its arguments does not exist.
    """
    config, ours = preset_config(network), evaluation_config(row)
    config.data.name, config.data.eval_split = ours.data.name, ours.data.eval_split
    config.eval.scales, config.eval.flip = ours.eval.scales, ours.eval.flip
    config.eval.ignored_pixels = ours.eval.ignored_pixels
    if network.image_size is None:
        config.data.image_size, config.eval.image_size = ours.data.image_size, ours.eval.image_size
    config.model.output_stride = ours.model.output_stride
    _set_fields(config, row.evaluate)
    return config


def _set_fields(config: ConfigDict, fields: Mapping[str, Any]) -> None:
    config.update_from_flattened_dict(dict(fields))
