"""Flax linen modules of the network, and how a config becomes one."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from deeplab_jax.config import check_choices
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.models.atrous import scale_rates
from deeplab_jax.models.backbones import BACKBONES, OPTIONS
from deeplab_jax.models.deeplab import DeepLabV3Plus
from deeplab_jax.parallel import halo

# Initialization runs once, and its program is long: one random draw per kernel. XLA:CPU compiles it four times faster
# without optimizations.
_INIT_COMPILER_OPTIONS = {"cpu": {"xla_backend_optimization_level": 0}}


def build_model(model: ConfigDict, num_classes: int, *, compute_dtype: str = "float32", **overrides) -> DeepLabV3Plus:
    """The module that `config.model` describes. Touches no device.

    Args:
      model: the `model` group of a config.
      num_classes: classes of the data set.
      compute_dtype: float32, bfloat16 or float64 (for tests).
      **overrides: attributes of `DeepLabV3Plus` that are no config fields, or another `output_stride`.

    Raises:
      UserError: a value that the network cannot be built with.
    """
    fields = {key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in model.items()}
    fields |= overrides
    if fields["backbone"] not in BACKBONES:
        raise UserError(
            f"model.backbone={fields['backbone']!r} does not exist{suggest(str(fields['backbone']), BACKBONES)}"
        )
    check_choices("model", fields)
    try:
        scale_rates(fields["atrous_rates"], fields["atrous_rates_stride"], fields["output_stride"])
    except ValueError as error:
        raise UserError(f"model.{error}; change them or model.output_stride") from None
    backbone = BACKBONES[fields["backbone"]]
    taken = inspect.signature(backbone).parameters
    for name, default in OPTIONS.items():
        if fields[name] != default and name not in taken:
            raise UserError(f"model.{name} is set, but {fields['backbone']} does not take it; leave it out")
    if fields["multi_grid"] and len(fields["multi_grid"]) != (units := backbone.keywords["blocks"][-1]):
        raise UserError(
            f"model.multi_grid has {len(fields['multi_grid'])} rates, "
            f"but the last stage of {fields['backbone']} has {units} units"
        )
    for name in ("input_mean", "input_std"):
        if len(fields[name]) != fields["in_channels"]:
            raise UserError(
                f"model.{name} has {len(fields[name])} values for model.in_channels={fields['in_channels']}"
            )
    return DeepLabV3Plus(num_classes=num_classes, dtype=jnp.dtype(compute_dtype), **fields)


def abstract_variables(model: DeepLabV3Plus, sharding: jax.sharding.Sharding | None = None) -> Any:
    """Shapes, dtypes and shardings of a network's `params` and `batch_stats`; computes nothing."""
    shapes = jax.eval_shape(lambda: initial_variables(model, jax.random.PRNGKey(0)))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def initial_variables(model: DeepLabV3Plus, rng: Any) -> dict[str, Any]:
    """Fresh `params` and `batch_stats`. Traceable; where it is not compiled, it computes logits as well."""
    # Variables depend neither on the image's size nor on the formulation: these take the least time to trace.
    images = jnp.zeros((1, 64, 64, model.in_channels), jnp.uint8)
    return model.clone(formulation="plain").init(rng, images, train=False)


def build_for_mesh(
    config: ConfigDict,
    num_classes: int,
    mesh: Mesh | AbstractMesh,
    *,
    input_sizes: Mapping[str, Sequence[int]] | None = None,
) -> DeepLabV3Plus:
    """Builds the config's network with the operations that a mesh needs. Touches no device.

    Args:
      config: a whole config.
      num_classes: number of classes of the data set.
      mesh: a mesh, or an abstract one.
      input_sizes: (height, width) of the network's inputs by the config field that sets them, see
        `deeplab_jax.data.protocol.EvalProtocol.input_sizes`; default: `data.image_size` alone.

    Raises:
      UserError: a value that the network cannot be built with, or a convolution that would gather whole images.
    """
    formulation = "spatial" if mesh.shape["spatial"] > 1 else "auto"
    # The CPU operations recompute activations anyway and keep only the inputs of units; XLA:CPU undoes what remat adds.
    on_cpu = isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu" and formulation == "auto"
    model = build_model(
        config.model,
        num_classes,
        compute_dtype=config.train.compute_dtype,
        formulation=formulation,
        remat="none" if on_cpu else config.train.remat,
    )
    if mesh.shape["spatial"] > 1:
        for field, size in (input_sizes or {"data.image_size": config.data.image_size}).items():
            images = jax.ShapeDtypeStruct((1, *size, model.in_channels), np.uint8)
            traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0])(abstract_variables(model), images)
            halo.check_halo(traced.jaxpr, mesh.shape["spatial"], field=field)
    return model


def random_variables(model, *, seed: int) -> dict[str, Any]:
    """Initializes `params` and `batch_stats` of a network on the default device."""
    return lower_initializer(lambda: initial_variables(model, jax.random.PRNGKey(seed))).compile()()


def lower_initializer(create: Callable[[], Any], sharding: Any = None) -> jax.stages.Lowered:
    """Lowers a function that initializes arrays, to be compiled for a single run.

    Args:
      create: takes no arguments.
      sharding: of all outputs, or one per output.
    """
    options = _INIT_COMPILER_OPTIONS.get(jax.default_backend())
    return jax.jit(create, out_shardings=sharding, compiler_options=options).lower()
