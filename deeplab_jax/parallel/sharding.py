"""The device mesh, where each array of a step lives on it, and how a host's batch becomes a global array.

The mesh has three axes. Batches are split over `data` and `fsdp`, parameters with their momentum and statistics over
`fsdp`, and the rows of images over `spatial`. XLA's partitioner adds what devices then have to tell each other:
BatchNorm's statistics, the loss and the gradients are those of the global batch.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

#: Mesh axes that the batch is split over.
BATCH_AXES = ("data", "fsdp")

#: By its path in the train state, which axes of an array may be split over `fsdp`: the first that divides is. A kernel
#: is (height, width, input features, features); the rest are vectors of features. A pattern is the last part of a path.
RULES = (
    (r"kernel", (3, 2)),
    (r"bias|scale|mean|var", (0,)),
    (r"rng", ()),
)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """One copy on every device: metrics, and parameters where they are used."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split along their first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def image_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Images and label maps are split along their rows too."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES, "spatial"))


def state_shardings(tree: PyTree, mesh: Mesh | AbstractMesh, *, fsdp_min_size: int) -> PyTree:
    """Where each array of a train state, or of a part of it, lives.

    Args:
      tree: arrays, or their shapes.
      mesh: of `make_mesh`.
      fsdp_min_size: arrays with fewer elements are replicated.

    Returns:
      A `NamedSharding` in each array's place.

    Raises:
      ValueError: an array that no rule names.
    """

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh.shape["fsdp"], fsdp_min_size=fsdp_min_size))

    return jax.tree_util.tree_map_with_path(place, tree)


def partition_spec(name: str, shape: tuple[int, ...], fsdp: int, *, fsdp_min_size: int) -> PartitionSpec:
    """How an array is split over `fsdp` devices: by the first rule that names it, if it is large and divides at all.

    Args:
      name: its path in the train state, such as `params/classifier/kernel`.
      shape: of the whole array.
      fsdp: devices along the axis.
      fsdp_min_size: elements of the smallest array that is split.

    Raises:
      ValueError: no rule names it.
    """
    if not shape:
        return PartitionSpec()  # a scalar: counters
    matching = [axes for pattern, axes in RULES if re.search(rf"(^|/)({pattern})$", name)]
    if not matching:
        raise ValueError(
            f"no sharding rule names {name} of shape {shape}; add one to deeplab_jax.parallel.sharding.RULES"
        )
    if fsdp > 1 and math.prod(shape) >= fsdp_min_size:
        for axis in matching[0]:
            if shape[axis] % fsdp == 0:
                return PartitionSpec(*[None] * axis, "fsdp")
    return PartitionSpec()


def with_shardings(tree: PyTree, mesh: Mesh, *, fsdp_min_size: int) -> PyTree:
    """The `jax.ShapeDtypeStruct`s of a tree's arrays, with their `state_shardings`."""
    shardings = state_shardings(tree, mesh, fsdp_min_size=fsdp_min_size)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )


def gather(tree: PyTree, mesh: Mesh) -> PyTree:
    """Whole parameters, for the time of their use.

    Said explicitly, so that the partitioner gathers parameters and leaves activations where they are: it could as well
    compute each device's own features of every image, and exchange those.
    """
    if mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from this process's share of each batch array; transfers start at once.

    Arrays of three axes or more are images or label maps. Nothing waits for an accelerator. On processors the copies
    are waited for, a few milliseconds: a program whose arguments are still being copied is put off to another thread,
    see `deeplab_jax.cli.host_memory`.
    """
    arrays = {
        name: jax.make_array_from_process_local_data(_of_batch(mesh, value.ndim), value)
        for name, value in batch.items()
    }
    return jax.block_until_ready(arrays) if mesh.devices.flat[0].platform == "cpu" else arrays


def abstract_batch(batch: dict[str, tuple[tuple[int, ...], Any]], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What `to_global` gives of a batch, as shapes, from its arrays' global shapes and dtypes."""
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=_of_batch(mesh, len(shape)))
        for name, (shape, dtype) in batch.items()
    }


def _of_batch(mesh: Mesh, ndim: int) -> NamedSharding:
    return image_sharding(mesh) if ndim >= 3 else batch_sharding(mesh)


def to_local(array: jax.Array) -> np.ndarray:
    """This process's share of an array that is split as `batch_sharding`; the inverse of `to_global`."""
    parts: dict[int, Any] = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
