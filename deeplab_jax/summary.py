"""Parameters, output shapes and multiply-adds of each part of a network, counted exactly."""

import dataclasses
import math
from collections import Counter
from typing import Any

import jax
import numpy as np
from jax.extend import core
from ml_collections import ConfigDict
from rich.table import Table

from deeplab_jax.models import DeepLabV3Plus, abstract_variables, build_model

# Rows of the table: prefixes of module paths, in the order of the computation.
ROWS = ("backbone", "aspp", "decoder/encoder_refine", "decoder/low_level", "decoder/refine", "classifier")


@dataclasses.dataclass(frozen=True)
class PartSummary:
    """One row: a part's output shape, its parameters and its multiply-adds for one picture.

    `nominal` counts the layers as the originals are published (enlarge, then project and classify) and leaves
    resizing out, as published figures do. `executed` counts what the network computes, resizing included. Both are of
    the plain formulation, where a convolution is a convolution.
    """

    name: str
    output_shape: tuple[int, ...] | None
    parameters: int
    trainable: int
    nominal: int
    executed: int


def summarize(model: DeepLabV3Plus, height: int, width: int) -> list[PartSummary]:
    """The rows of a network's table for pictures of height x width, without computing anything."""
    images = jax.ShapeDtypeStruct((1, height, width, model.in_channels), np.uint8)
    variables = abstract_variables(model)
    logits, endpoints = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    shapes = {
        "backbone": endpoints["features"].shape,
        "aspp": endpoints["aspp"].shape,
        "decoder/refine": endpoints["decoder"].shape if "decoder" in endpoints else None,
        "classifier": logits.shape,
    }
    if "decoder" in endpoints:
        shapes["decoder/encoder_refine"] = (*endpoints["aspp"].shape[:3], model.decoder_channels)
        shapes["decoder/low_level"] = (*endpoints["decoder"].shape[:3], model.low_level_channels)
    trainable = _sizes(variables["params"])
    statistics = _sizes(variables["batch_stats"])
    nominal = count_multiply_adds(model.clone(formulation="plain", published_order=True), variables, images)
    executed = count_multiply_adds(model.clone(formulation="plain", published_order=False), variables, images)
    rows = []
    for name in ROWS:
        own = _row_sum(trainable, name)
        if own:
            rows.append(
                PartSummary(
                    name=name,
                    output_shape=shapes[name],
                    parameters=own + _row_sum(statistics, name),
                    trainable=own,
                    nominal=_row_sum({path: n for (path, kind), n in nominal.items() if kind == "conv"}, name),
                    executed=_row_sum({path: n for (path, kind), n in executed.items() if kind == "conv"}, name),
                )
            )
    resize = sum(n for (_, kind), n in executed.items() if kind == "matmul")
    rows.append(PartSummary("resizing", logits.shape, 0, 0, 0, resize))
    return rows


def count_multiply_adds(model: DeepLabV3Plus, variables: Any, images: Any) -> Counter:
    """Multiply-adds of the traced inference program, by (module path, "conv" or "matmul").

    Padding counts as data, as published figures count it.
    """
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0])(variables, images)
    counts = Counter()
    _walk(jaxpr.jaxpr, "", counts)
    return counts


def summary_table(config: ConfigDict, num_classes: int) -> Table:
    """The table that `deeplab-jax summary` prints."""
    height, width = config.data.image_size
    model = build_model(config.model, num_classes, compute_dtype=config.train.compute_dtype)
    rows = summarize(model, height, width)
    table = Table(
        title=f"DeepLab, {config.model.backbone}, output stride {config.model.output_stride}, {height}x{width} pixels"
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
            _in_units(row.executed),
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


def _in_units(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e8 else f"{count / 1e6:.2f} M"


def _walk(jaxpr: core.Jaxpr, prefix: str, counts: Counter) -> None:
    for eqn in jaxpr.eqns:
        path = "/".join(filter(None, (prefix, str(eqn.source_info.name_stack))))
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            spec = eqn.params["dimension_numbers"].rhs_spec  # output features, input features, space
            per_output = math.prod(kernel) // kernel[spec[0]]
            counts[path, "conv"] += math.prod(eqn.outvars[0].aval.shape) * per_output
        elif eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            counts[path, "matmul"] += math.prod(eqn.outvars[0].aval.shape) * depth
        for inner in _inner(eqn.params):
            _walk(inner, path, counts)


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    inner = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                inner.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                inner.append(item)
    return inner


def _sizes(tree: Any) -> dict[str, int]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): math.prod(leaf.shape) for path, leaf in leaves}


def _row_sum(sizes: dict[str, int], row: str) -> int:
    return sum(size for path, size in sizes.items() if f"/{row}" in f"/{path}")
