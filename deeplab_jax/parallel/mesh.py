"""The device mesh: its axes, and the checks that a config fits it."""

import itertools
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from deeplab_jax.config import eval_batch_size, unlabeled_batch_size
from deeplab_jax.errors import UserError

#: Axes of the device mesh, from the slowest to the fastest: neighboring devices share the rows of an image.
MESH_AXES = ("data", "fsdp", "spatial")


def make_mesh(mesh: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Creates the mesh of `config.mesh`, over the first devices if it needs fewer than there are.

    The devices of a slice stay together, and only the axis `data` connects slices.

    Args:
      mesh: the `mesh` group of a config.
      devices: devices to use; default: the devices of all processes.

    Raises:
      UserError: sizes that do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(mesh, len(devices))
    slices = mesh_slices(mesh, len(devices), found=count_slices(devices))
    shape = (sizes["data"] // slices, sizes["fsdp"], sizes["spatial"])
    parts = _split_slices(devices, slices, size=math.prod(shape))
    array = np.concatenate([_arrange(part, shape) for part in parts])
    # Auto: XLA's partitioner propagates shardings. Explicit axes, the default of jax.make_mesh, reject contractions and
    # scatters over sharded axes, which the loss and the confusion matrix need.
    return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def count_slices(devices: Sequence[jax.Device]) -> int:
    """Returns the number of slices that devices belong to.

    TPUs of a slice and, in JAX, the GPUs of a host are connected by fast links; slices are connected by the network of
    the data center. Devices that do not know their slice, such as CPUs, count as one.
    """
    return len({_slice_of(device) for device in devices})


def mesh_slices(mesh: ConfigDict, devices: int, *, found: int) -> int:
    """Returns the number of slices that the axis `data` connects.

    Args:
      mesh: the `mesh` group of a config.
      devices: number of devices.
      found: number of slices that they belong to, see `count_slices`.

    Raises:
      UserError: `mesh.slices` does not fit the devices or `mesh.data`.
    """
    if mesh.slices < 1 and mesh.slices != -1:
        raise UserError(f"mesh.slices={mesh.slices} must be at least 1, or -1 to detect the slices")
    slices = found if mesh.slices == -1 else mesh.slices
    if found > 1 and slices not in (1, found):
        raise UserError(f"mesh.slices={slices}, but the devices belong to {found} slices; set it to {found} or to -1")
    if devices % slices:
        raise UserError(f"mesh.slices={slices} does not divide {devices} devices; use slices of the same size")
    data = mesh_sizes(mesh, devices)["data"]
    if data % slices:
        raise UserError(
            f"mesh.data={data} does not divide over {slices} slices; use a multiple of {slices}, or mesh.slices=1 to "
            "ignore slices"
        )
    return slices


def _slice_of(device: jax.Device) -> int:
    return getattr(device, "slice_index", None) or 0


def _order(device: jax.Device) -> tuple[int, int, int]:
    return _slice_of(device), device.process_index, device.id


def _split_slices(devices: Sequence[jax.Device], slices: int, *, size: int) -> list[list[jax.Device]]:
    """Splits devices into slices, and returns the first `size` of each.

    Raises:
      UserError: a slice has fewer devices.
    """
    if slices == 1:
        return [list(devices[:size])]
    devices = sorted(devices, key=_order)
    if count_slices(devices) == 1:  # they do not know their slices
        parts = [
            devices[start : start + len(devices) // slices] for start in range(0, len(devices), len(devices) // slices)
        ]
    else:
        parts = [list(part) for _, part in itertools.groupby(devices, key=_slice_of)]
    smallest = min(map(len, parts))
    if smallest < size:
        raise UserError(
            f"the mesh needs {size} devices in each of {slices} slices, but one has {smallest}; use slices of the same "
            "size, or set mesh.slices=1"
        )
    return [part[:size] for part in parts]


def _arrange(devices: Sequence[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    """Arranges devices by their links where JAX knows them, or else by their order."""
    # Processes read whole images, so devices that share one must belong to one process. jax.make_mesh does not look at
    # processes, and it rejects devices of several slices.
    if shape[MESH_AXES.index("spatial")] == 1 and count_slices(devices) == 1:
        return jax.make_mesh(shape, MESH_AXES, devices=devices).devices
    return np.array(sorted(devices, key=_order)).reshape(shape)


def data_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Creates a mesh that splits only batches, over these devices."""
    shape = (len(devices),) + (1,) * (len(MESH_AXES) - 1)
    return Mesh(np.array(devices).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_sizes(mesh: ConfigDict, devices: int) -> dict[str, int]:
    """Returns the number of devices along each of `MESH_AXES`.

    Args:
      mesh: the `mesh` group of a config.
      devices: number of devices. Unless an axis is -1, the mesh may use fewer.

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
        raise UserError(f"{given}: only one axis can be -1, the rest of the devices")
    taken = math.prod(size for size in sizes.values() if size != -1)
    if taken > devices:
        raise UserError(f"{given} needs {taken} devices, but there are {devices}; set one axis to -1 to use the rest")
    if rest and devices % taken:
        raise UserError(f"{given} does not divide {devices} devices; choose sizes that do")
    return sizes | dict.fromkeys(rest, devices // taken)


def validate_mesh(
    config: ConfigDict,
    devices: int,
    processes: int,
    *,
    input_sizes: Mapping[str, Sequence[int] | None],
    can_split_rows: bool = True,
    slices: int = 1,
) -> None:
    """Checks that batches and images divide over the mesh.

    Args:
      config: a whole config.
      devices: number of devices of all processes.
      processes: number of processes.
      input_sizes: (height, width) of the network's inputs by the config field that sets them, see
        `deeplab_jax.data.EvalProtocol.input_sizes`.
      can_split_rows: whether the evaluation protocol allows `mesh.spatial`.
      slices: number of slices that the devices belong to, see `count_slices`.

    Raises:
      UserError: naming the field and the fix.
    """
    sizes = mesh_sizes(config.mesh, devices)
    mesh_slices(config.mesh, devices, found=slices)
    if processes > 1 and math.prod(sizes.values()) != devices:
        raise UserError(
            f"the mesh uses {math.prod(sizes.values())} of {devices} devices, but with several processes it must use "
            "all of them; set mesh.data=-1"
        )
    if processes > 1 and devices // processes % sizes["spatial"]:
        raise UserError(
            f"mesh.spatial={sizes['spatial']} splits images over processes, but each process reads whole images; use a "
            f"divisor of the {devices // processes} devices per process"
        )
    _validate_batches(config, sizes["data"] * sizes["fsdp"])
    if sizes["spatial"] > 1:
        if not can_split_rows:
            raise UserError(
                f"eval.protocol={config.eval.protocol!r} resizes to each image's own size, which "
                f"mesh.spatial={sizes['spatial']} cannot split; use whole with eval.image_size, or guide"
            )
        _validate_rows(config, sizes["spatial"], input_sizes)


def _validate_batches(config: ConfigDict, shards: int) -> None:
    """Checks that batches divide over the devices, and over the parts of an accumulated step."""
    parts = config.train.accumulate_steps
    for field, size in (("data.batch_size", config.data.batch_size), ("eval.batch_size", eval_batch_size(config))):
        if size % shards:
            raise UserError(f"{field}={size} does not divide over {shards} devices; use a multiple of {shards}")
    trained = {"data.batch_size": config.data.batch_size}
    if config.unlabeled.split is not None:
        trained["unlabeled.batch_size"] = unlabeled_batch_size(config)
    for field, size in trained.items():
        if size % (shards * parts):
            raise UserError(
                f"{field}={size} does not divide into train.accumulate_steps={parts} parts over {shards} devices; use "
                f"a multiple of {shards * parts}"
            )
    # The two images of a pair are on one device, and come from one process.
    if config.unlabeled.split is not None and config.unlabeled.cut_mix and unlabeled_batch_size(config) % (2 * shards):
        raise UserError(
            f"unlabeled.batch_size={unlabeled_batch_size(config)} must be a multiple of {2 * shards}, because CutMix "
            "mixes pairs of images on each device; change it, or set unlabeled.cut_mix=0"
        )


def _validate_rows(config: ConfigDict, spatial: int, input_sizes: Mapping[str, Sequence[int] | None]) -> None:
    """Checks that each device gets whole rows at every stride."""
    if any(scale != 1 for scale in config.eval.scales):
        raise UserError(
            f"eval.scales={tuple(config.eval.scales)} gives heights that mesh.spatial={spatial} does not divide; "
            "remove one of the two"
        )
    rows = spatial * config.model.output_stride
    for field, size in input_sizes.items():
        if size is None or size[0] % rows:
            given = " is not set" if size is None else f"={tuple(size)} does not divide"
            raise UserError(
                f"{field}{given}; with mesh.spatial={spatial} and model.output_stride={config.model.output_stride} "
                f"its height must be a multiple of {rows}"
            )
    if config.model.align_corners:
        raise UserError(
            f"model.align_corners=True needs heights of k * stride + 1, which mesh.spatial={spatial} does not divide; "
            "remove one of the two"
        )
