"""The device mesh, where each array of a step lives on it, and how a host's batch becomes a global array."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

# Mesh axes that the batch is split over.
BATCH_AXES = ("data",)


def make_mesh(mesh: ConfigDict) -> Mesh:
    """A mesh of all processes' devices; `mesh.data` = -1 takes them all."""
    devices = jax.devices() if mesh.data == -1 else jax.devices()[: mesh.data]
    # Auto: XLA's partitioner propagates shardings. Explicit axes, make_mesh's default, refuse contractions and
    # scatters over sharded axes that the loss and the confusion matrix need.
    return jax.make_mesh((len(devices),), BATCH_AXES, axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split along their first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """One copy on every device: the train state, and metrics."""
    return NamedSharding(mesh, PartitionSpec())


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from this process's share of each batch array; transfers start at once, nothing waits."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
