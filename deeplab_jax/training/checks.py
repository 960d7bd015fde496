"""Checks of a whole training before any of it starts: a sweep or a later stage shall not fail after hours of others."""

import jax
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import data, losses
from deeplab_jax.errors import UserError
from deeplab_jax.models import PARTS, build_for_mesh
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import processes
from deeplab_jax.training import optimizer, plan
from deeplab_jax.training.sources import open_sources
from deeplab_jax.workdir import writers


def check_training(config: ConfigDict) -> None:
    """Checks everything that can be checked without a step: the config, and the data, network, loss and optimizer.

    All stages of a config with stages are checked. Nothing is traced, so this takes about as long as opening the data.

    Args:
      config: a whole config.

    Raises:
      UserError: a value is wrong, or does not fit the data or the devices.
    """
    processes.check_same_config(config)
    config_lib.validate(config)
    for name, each in (config_lib.stage_configs(config) or {"": config}).items():
        try:
            _check_parts(each)
        except UserError as error:
            raise (UserError(f"stage {name}: {error}") if name else error) from None


def _check_parts(config: ConfigDict) -> None:
    """Opens the data of a training without stages, and builds what its step consists of."""
    if processes.is_leader():
        writers.check_installed(config)
    if config.data.transform:
        data.find_transform(config.data.transform)
    protocol = data.protocol_for(config)
    mesh_lib.validate_mesh(
        config,
        devices=jax.device_count(),
        processes=jax.process_count(),
        input_sizes=protocol.input_sizes,
        can_split_rows=protocol.can_split_rows,
        slices=mesh_lib.count_slices(jax.devices()),
    )
    config, sources = open_sources(config)
    durations, num_classes = plan.durations(config, len(sources.train)), sources.train.label_set.num_classes
    build_for_mesh(config, num_classes, mesh_lib.make_mesh(config.mesh), input_sizes=protocol.input_sizes)
    losses.make_loss(config.loss, num_classes=num_classes)
    optimizer.make(config.optimizer, durations.total, durations.warmup, parts=PARTS)
