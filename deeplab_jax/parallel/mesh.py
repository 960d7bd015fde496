"""The device mesh: its axes, and whether a config fits it."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from deeplab_jax.config import eval_batch_size
from deeplab_jax.errors import UserError


def mesh_sizes(mesh: ConfigDict, devices: int) -> dict[str, int]:
    """Devices along each of `MESH_AXES`.

    Args:
      mesh: the `mesh` group of a config.
      devices: that there are; without a -1 the mesh may take fewer.

    Raises:
      UserError: sizes that do not fit the devices.
    """
    sizes = {axis: mesh[axis] for axis in MESH_AXES}
    given = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    rest = [axis for axis, size in sizes.items() if size == -1]
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise UserError(f"mesh.{axis}={size} must be at least 1, or -1 for the rest of the devices")
    if len(rest) > 1:
        raise UserError(f"{given}: only one of them can be -1, the rest of the devices")
    taken = math.prod(size for size in sizes.values() if size != -1)
    if taken > devices:
        raise UserError(f"{given} needs {taken} devices, there are {devices}; -1 for one of them takes the rest")
    if rest and devices % taken:
        raise UserError(f"{given} does not divide {devices} devices; choose sizes that do")
    return sizes | dict.fromkeys(rest, devices // taken)


def validate_mesh(config: ConfigDict, devices: int, processes: int) -> None:
    sizes = mesh_sizes(config.mesh, devices)
    if processes > 1 and math.prod(sizes.values()) != devices:
        raise UserError(
            f"the mesh takes {math.prod(sizes.values())} of {devices} devices, but every process needs its own in it; "
            "set mesh.data=-1"
        )
    if processes > 1 and devices // processes % sizes["spatial"]:
        raise UserError(
            f"mesh.spatial={sizes['spatial']} splits images over processes, which read whole ones; use a divisor of "
            f"the {devices // processes} devices of a process"
        )
    shards, parts = sizes["data"] * sizes["fsdp"], config.train.accumulate_steps
    if parts < 1:
        raise UserError(f"train.accumulate_steps={parts} must be at least 1")
    for field, size in (("data.batch_size", config.data.batch_size), ("eval.batch_size", eval_batch_size(config))):
        if size < 1 or size % shards:
            raise UserError(f"{field}={size} does not divide over {shards} devices; use a multiple of {shards}")
    if config.data.batch_size % (shards * parts):
        raise UserError(
            f"data.batch_size={config.data.batch_size} does not divide into train.accumulate_steps={parts} parts over "
            f"{shards} devices; use a multiple of {shards * parts}"
        )
    if sizes["spatial"] > 1:
        _validate_spatial(config, sizes["spatial"])


def _validate_spatial(config: ConfigDict, spatial: int) -> None:
    """Whether each device gets whole rows at every stride, and no step needs rows of the whole image."""
    rows = spatial * config.model.output_stride
    if config.eval.protocol == "squeeze":
        raise UserError(
            f"eval.protocol='squeeze' resizes to each image's own size, which mesh.spatial={spatial} cannot split; "
            "use whole with eval.image_size, or guide"
        )
    if any(scale != 1 for scale in config.eval.scales):
        raise UserError(
            f"eval.scales={tuple(config.eval.scales)} gives heights that mesh.spatial={spatial} does not divide; "
            "leave one of them out"
        )
    fields = ("data.image_size", "eval.image_size") if config.eval.protocol == "whole" else ("data.image_size",)
    for field in fields:
        size = config[field.split(".")[0]].image_size
        if size is None or size[0] % rows:
            given = " is not set" if size is None else f"={tuple(size)} does not divide"
            raise UserError(
                f"{field}{given}; with mesh.spatial={spatial} and model.output_stride={config.model.output_stride} "
                f"its height must be a multiple of {rows}"
            )
    if config.model.align_corners:
        raise UserError(
            f"model.align_corners=True needs heights of k * stride + 1, which mesh.spatial={spatial} does not divide; "
            "leave one of them out"
        )


#: Axes of the device mesh, from the slowest to the fastest: devices next to each other share an image's rows.
MESH_AXES = ("data", "fsdp", "spatial")


def make_mesh(mesh: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh` over all processes' devices, or over the first ones if it takes fewer.

    Args:
      mesh: the `mesh` group of a config.
      devices: others than those that are here.

    Raises:
      UserError: sizes that do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(mesh, len(devices))
    devices = devices[: math.prod(sizes.values())]
    # Auto: XLA's partitioner propagates shardings. Explicit axes, make_mesh's default, refuse contractions and
    # scatters over sharded axes that the loss and the confusion matrix need.
    types = (AxisType.Auto,) * len(MESH_AXES)
    if sizes["spatial"] == 1:
        return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=types, devices=devices)
    # Processes read whole images, so those that share one have to belong to one; make_mesh looks at the wires alone.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(*sizes.values()), MESH_AXES, axis_types=types)
