"""Sharding rules: how the arrays of a step are split over the device mesh.

The mesh has three axes. Batches are split over `data` and `fsdp`; parameters, their momentum and batch statistics over
`fsdp`; and the rows of images over `spatial`. XLA's partitioner inserts the communication, so BatchNorm's statistics,
the loss and the gradients are those of the global batch.
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

#: Which axes of an array may be split over `fsdp`, by the last part of its path in the training state. The first axis
#: that divides is split. Kernels are (height, width, input features, features); the rest are vectors of features.
RULES = (
    (r"kernel", (3, 2)),
    (r"bias|scale|mean|var", (0,)),
    (r"rng", ()),
)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of a copy on every device: metrics, and parameters where they are used."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: split along the first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def image_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of images and labels: split along the batch and along rows."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES, "spatial"))


def state_shardings(tree: PyTree, mesh: Mesh | AbstractMesh, *, fsdp_min_size: int) -> PyTree:
    """Returns the sharding of each array of a training state, or of a part of it.

    Args:
      tree: arrays, or their shapes.
      mesh: a mesh of `deeplab_jax.parallel.mesh.make_mesh`.
      fsdp_min_size: arrays with fewer elements are replicated.

    Returns:
      A tree of `NamedSharding`.

    Raises:
      ValueError: no rule matches an array.
    """

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh.shape["fsdp"], fsdp_min_size=fsdp_min_size))

    return jax.tree_util.tree_map_with_path(place, tree)


def partition_spec(name: str, shape: tuple[int, ...], fsdp: int, *, fsdp_min_size: int) -> PartitionSpec:
    """Returns how an array is split over `fsdp`, by the first rule that matches it.

    Arrays that are small, or none of whose axes divides, stay whole.

    Args:
      name: path in the training state, such as `params/classifier/kernel`.
      shape: shape of the whole array.
      fsdp: number of devices along the axis.
      fsdp_min_size: number of elements of the smallest array that is split.

    Raises:
      ValueError: no rule matches the array.
    """
    if not shape:
        return PartitionSpec()  # a scalar: counters
    matching = [axes for pattern, axes in RULES if re.search(rf"(^|/)({pattern})$", name)]
    if not matching:
        raise ValueError(
            f"no sharding rule matches {name} of shape {shape}; add one to deeplab_jax.parallel.sharding.RULES"
        )
    if fsdp > 1 and math.prod(shape) >= fsdp_min_size:
        for axis in matching[0]:
            if shape[axis] % fsdp == 0:
                return PartitionSpec(*[None] * axis, "fsdp")
    return PartitionSpec()


def with_shardings(tree: PyTree, mesh: Mesh, *, fsdp_min_size: int) -> PyTree:
    """Returns the `jax.ShapeDtypeStruct` of each array in a tree, with its `state_shardings`."""
    shardings = state_shardings(tree, mesh, fsdp_min_size=fsdp_min_size)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )


def gather(tree: PyTree, mesh: Mesh) -> PyTree:
    """Gathers the parameters on every device for the time of their use. Traceable.

    Without this constraint the partitioner may keep the parameters split and move activations instead: each device
    would compute its own features of every image.
    """
    if mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Creates global arrays from this process's share of each batch array.

    Arrays of three axes or more are images or labels. On accelerators the transfer is asynchronous. On CPU this waits a
    few milliseconds for the copies, because a program whose arguments are still being copied moves to another thread,
    see `deeplab_jax.cli.malloc`.
    """
    arrays = {
        name: jax.make_array_from_process_local_data(_of_batch(mesh, value.ndim), value)
        for name, value in batch.items()
    }
    return jax.block_until_ready(arrays) if mesh.devices.flat[0].platform == "cpu" else arrays


def abstract_batch(batch: dict[str, tuple[tuple[int, ...], Any]], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and shardings that `to_global` gives a batch.

    Args:
      batch: global shape and dtype of each array.
      mesh: the mesh.
    """
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=_of_batch(mesh, len(shape)))
        for name, (shape, dtype) in batch.items()
    }


def _of_batch(mesh: Mesh, ndim: int) -> NamedSharding:
    return image_sharding(mesh) if ndim >= 3 else batch_sharding(mesh)


def to_local(array: jax.Array) -> np.ndarray:
    """Returns this process's share of an array split like `batch_sharding`; the inverse of `to_global`."""
    parts: dict[int, Any] = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
