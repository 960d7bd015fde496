"""Parameters, output shapes and multiply-adds of each part of a network, and how its arrays are split over a mesh."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding
from ml_collections import ConfigDict
from rich.table import Table

from deeplab_jax import config as config_lib
from deeplab_jax import ops
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.models import (
    HEADS,
    PARTS,
    DeepLabV3Plus,
    SegmentationNetwork,
    abstract_variables,
    build_for_mesh,
    build_model,
)
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.parallel.jaxpr import equations
from deeplab_jax.training import optimizer
from deeplab_jax.training.state import TrainState

#: Rows of the table: parts of networks and of decoders, in the order of the computation. "decoder" is one without the
#: parts before it.
ROWS = (
    "backbone",
    "aspp",
    "decoder/encoder_refine",
    "decoder/mid_level",
    "decoder/mid_refine",
    "decoder/low_level",
    "decoder/refine",
    "decoder",
    "classifier",
    "auxiliary",
)


@dataclasses.dataclass(frozen=True)
class PartSummary:
    """One row of the table: a part of the network, for one image in inference.

    Both counts are of plain XLA operations. The auxiliary head has parameters but is computed only in training.

    Attributes:
      name: the part, one of `ROWS`, or "resizing", which includes windows of image pooling.
      output_shape: shape of its output.
      parameters: number of parameters, including batch statistics.
      trainable: number of trainable parameters.
      nominal: multiply-adds of the published order of layers (upsample, then project and classify): convolutions and
        matrix products such as those of attention, without resizing, as in published figures.
      executed: multiply-adds that the network executes, including resizing.
    """

    name: str
    output_shape: tuple[int, ...] | None
    parameters: int
    trainable: int
    nominal: int
    executed: int


def summarize(model: SegmentationNetwork, height: int, width: int) -> list[PartSummary]:
    """The rows of the table for images of height x width. Computes nothing."""
    images = jax.ShapeDtypeStruct((1, height, width, model.in_channels), np.uint8)
    variables = abstract_variables(model)
    logits, endpoints = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    shapes = _output_shapes(model, logits, endpoints)
    trainable = _by_row(_sizes(variables["params"]))
    statistics = _by_row(_sizes(variables["batch_stats"]))
    nominal, executed = (
        count_multiply_adds(model.clone(ops=ops.XLA, published_order=order), variables, images)
        for order in (True, False)
    )
    resizing = sum(n for (_, kind), n in executed.items() if kind == "resize")
    nominal, executed = (
        _by_row({path: n for (path, kind), n in counts.items() if kind != "resize"}) for counts in (nominal, executed)
    )
    rows = [
        PartSummary(
            name=name,
            output_shape=shapes.get(name),
            parameters=trainable[name] + statistics[name],
            trainable=trainable[name],
            nominal=nominal[name],
            executed=executed[name],
        )
        for name in ROWS
        if trainable[name]
    ]
    return [*rows, PartSummary("resizing", logits.shape, 0, 0, 0, resizing)]


def _output_shapes(model: SegmentationNetwork, logits: Any, endpoints: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes = {"backbone": endpoints["features"].shape, "classifier": logits.shape}
    if "aspp" in endpoints:
        shapes["aspp"] = endpoints["aspp"].shape
    if "decoder" in endpoints:
        decoder = shapes["decoder"] = shapes["decoder/refine"] = endpoints["decoder"].shape
        shapes["decoder/encoder_refine"] = (*endpoints["features"].shape[:3], decoder[3])
        if isinstance(model, DeepLabV3Plus):
            shapes["decoder/low_level"] = (*decoder[:3], model.low_level_channels)
            if "mid_level_features" in endpoints:
                size = endpoints["mid_level_features"].shape[:3]
                shapes["decoder/mid_level"] = (*size, model.low_level_channels)
                shapes["decoder/mid_refine"] = (*size, decoder[3])
    if model.auxiliary_channels:
        shapes["auxiliary"] = (*endpoints[model.auxiliary_features].shape[:3], model.num_classes)
    return shapes


def count_multiply_adds(model: SegmentationNetwork, variables: Any, images: Any) -> Counter:
    """Counts the multiply-adds of the traced inference program, by (module path, kind).

    The kinds are "conv", "matmul" and, for products of an image with a matrix along its height or width, "resize":
    bilinear interpolation and windows of image pooling. Padding counts like data, as in published figures.
    """
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0])(variables, images)
    counts = Counter()
    for path, eqn in equations(jaxpr.jaxpr):
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            spec = eqn.params["dimension_numbers"].rhs_spec  # output features, input features, space
            per_output = math.prod(kernel) // kernel[spec[0]]
            counts[path, "conv"] += math.prod(eqn.outvars[0].aval.shape) * per_output
        elif eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            kind = "resize" if _is_resize(eqn) else "matmul"
            counts[path, kind] += math.prod(eqn.outvars[0].aval.shape) * depth
    return counts


def _is_resize(eqn: Any) -> bool:
    contracted, batch = eqn.params["dimension_numbers"]
    ranks = [len(operand.aval.shape) for operand in eqn.invars]
    if sorted(ranks) != [2, 4] or any(batch):
        return False
    return contracted[ranks.index(4)] in ((1,), (2,))


def summarize_config(config: ConfigDict, num_classes: int) -> list[PartSummary]:
    """The parts of a config's network, for images of `data.image_size`. Computes nothing.

    Raises:
      UserError: the config is invalid.
    """
    config_lib.validate(config, training=False)
    model = build_model(config.model, num_classes, compute_dtype=config.train.compute_dtype)
    return summarize(model, *config.data.image_size)


def summary_table(config: ConfigDict, num_classes: int) -> Table:
    """The table of `deeplab-jax summary`: the parts of a config's network.

    Raises:
      UserError: the config is invalid.
    """
    rows = summarize_config(config, num_classes)
    height, width = config.data.image_size
    table = Table(
        title=f"{HEADS[config.model.head].__name__}, {config.model.backbone}, output stride "
        f"{config.model.output_stride}, {height}x{width} pixels"
    )
    table.add_column("part")
    for column in ("output", "parameters", "trainable", "multiply-adds, nominal", "executed"):
        table.add_column(column, justify="right")
    for row in rows:
        shape = "x".join(map(str, row.output_shape[1:])) if row.output_shape else ""
        table.add_row(
            row.name,
            shape,
            f"{row.parameters:,}",
            f"{row.trainable:,}",
            _in_units(row.nominal) if row.nominal else "",
            _in_units(row.executed) if row.executed else "",
        )
    table.add_section()
    table.add_row(
        "sum",
        "",
        f"{sum(row.parameters for row in rows):,}",
        f"{sum(row.trainable for row in rows):,}",
        _in_units(sum(row.nominal for row in rows)),
        _in_units(sum(row.executed for row in rows)),
    )
    return table


@dataclasses.dataclass(frozen=True)
class ArrayPlacement:
    """How an array of the train state or a batch is split over a mesh.

    Attributes:
      name: path of the array.
      shape: its global shape.
      split: the axes that are split and over which axes of the mesh, or "whole".
      total_bytes: size of the whole array.
      device_bytes: size of the part on one device.
    """

    name: str
    shape: tuple[int, ...]
    split: str
    total_bytes: int
    device_bytes: int


def place_arrays(config: ConfigDict, num_classes: int, devices: int) -> tuple[dict[str, int], list[ArrayPlacement]]:
    """Returns the sizes of the mesh axes, and the placement of each array of the train state and of a batch.

    Computes nothing, so the devices need not exist.

    Raises:
      UserError: the config cannot be trained on this number of devices.
    """
    config_lib.validate(config)
    protocol = protocol_for(config)
    mesh_lib.validate_mesh(
        config,
        devices=devices,
        processes=1,
        input_sizes=protocol.input_sizes,
        can_split_rows=protocol.can_split_rows,
    )
    sizes = mesh_lib.mesh_sizes(config.mesh, devices)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    model = build_for_mesh(config, num_classes, mesh, input_sizes=protocol.input_sizes)
    # The shapes of the momentum do not depend on the length of the training.
    transformation, _ = optimizer.make(config.optimizer, total_steps=1, parts=PARTS)
    state = TrainState.shapes(model, transformation, averages=config.train.ema_decay is not None)
    shardings = sharding.state_shardings(state, mesh, fsdp_min_size=config.mesh.fsdp_min_size)
    placed = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    places = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)}
    size = (config.data.batch_size, *config.data.image_size)
    placed["batch/image"] = jax.ShapeDtypeStruct((*size, model.in_channels), np.uint8)
    placed["batch/label"] = jax.ShapeDtypeStruct(size, np.uint8)
    places["batch/image"] = places["batch/label"] = sharding.image_sharding(mesh)

    placements = []
    for name, leaf in placed.items():
        whole, own = (
            math.prod(shape) * leaf.dtype.itemsize for shape in (leaf.shape, places[name].shard_shape(leaf.shape))
        )
        placements.append(ArrayPlacement(name, leaf.shape, _split(places[name]), whole, own))
    return sizes, placements


def mesh_table(config: ConfigDict, num_classes: int, devices: int) -> Table:
    """The table of `deeplab-jax summary --mesh`: the result of `place_arrays`.

    Raises:
      UserError: the config cannot be trained on this number of devices.
    """
    sizes, placements = place_arrays(config, num_classes, devices)
    table = Table(title=" x ".join(f"{axis} {size}" for axis, size in sizes.items()))
    table.add_column("array")
    table.add_column("shape", justify="right")
    table.add_column("split")
    table.add_column("bytes", justify="right")
    table.add_column("bytes per device", justify="right")
    for array in placements:
        shape = "x".join(map(str, array.shape))
        table.add_row(array.name, shape, array.split, f"{array.total_bytes:,}", f"{array.device_bytes:,}")
    table.add_section()
    totals = (sum(array.total_bytes for array in placements), sum(array.device_bytes for array in placements))
    table.add_row("sum", "", "", *(f"{total:,}" for total in totals))
    return table


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _split(place: NamedSharding) -> str:
    """The axes of an array that are split, and over which axes of the mesh."""
    parts = []
    for axis, entry in enumerate(place.spec):
        names = [name for name in (entry if isinstance(entry, tuple) else (entry,)) if name is not None]
        over = [name for name in names if place.mesh.shape[name] > 1]
        if over:
            parts.append(f"axis {axis} over {' x '.join(over)}")
    return ", ".join(parts) or "whole"


def _in_units(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e8 else f"{count / 1e6:.2f} M"


def _sizes(tree: Any) -> dict[str, int]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): math.prod(leaf.shape) for path, leaf in leaves}


def _by_row(sizes: Mapping[str, int]) -> Counter:
    sums = Counter()
    for path, size in sizes.items():
        sums[_row_of(path)] += size
    return sums


def _row_of(path: str) -> str | None:
    """Returns the row of a module path: that of its first component with the name of a part."""
    names = path.split("/")
    for i, part in enumerate(names):
        if part == "decoder":
            inside = f"decoder/{names[i + 1]}" if i + 1 < len(names) else part
            return next((row for row in ROWS if row != part and inside.startswith(row)), part)
        if part in PARTS:
            return part
    return None
