"""Flax linen modules of the network, and how a config becomes one."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from deeplab_jax.config import check_choices
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.models.atrous import scale_rates
from deeplab_jax.models.backbones import BACKBONES, OPTIONS
from deeplab_jax.models.deeplab import DeepLabV3Plus
from deeplab_jax.parallel import sharding


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


def build_for_mesh(config: ConfigDict, num_classes: int, mesh: Mesh | AbstractMesh) -> DeepLabV3Plus:
    """The config's network with the operations that a mesh needs. Touches no device.

    Raises:
      UserError: a value that the network cannot be built with, or a convolution that would gather whole images.
    """
    formulation = sharding.formulation(mesh)
    # The operations for processors have activations computed again in any case, and keep what units receive; what
    # remat adds to that, XLA:CPU undoes.
    on_cpu = isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu" and formulation == "auto"
    model = build_model(
        config.model,
        num_classes,
        compute_dtype=config.train.compute_dtype,
        formulation=formulation,
        remat="none" if on_cpu else config.train.remat,
    )
    if mesh.shape["spatial"] > 1:
        fields = {"data.image_size": config.data.image_size}
        if config.eval.protocol == "whole":
            fields["eval.image_size"] = config.eval.image_size
        for field, size in fields.items():
            _check(model, field, size, mesh.shape["spatial"])
    return model


def random_variables(model, *, seed: int) -> dict[str, Any]:
    """Fresh `params` and `batch_stats` of a network, on the default device."""
    return _lower(lambda: initial_variables(model, jax.random.PRNGKey(seed))).compile()()
