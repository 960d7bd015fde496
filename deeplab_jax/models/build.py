"""Functions that build a network from a config and initialize its variables."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from deeplab_jax import budget, ops
from deeplab_jax.config import FIELDS, check_fields, check_value_range
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.models.atrous import scale_rates
from deeplab_jax.models.backbones import BACKBONES, OPTIONS
from deeplab_jax.models.deeplab import DeepLabV3Plus
from deeplab_jax.models.dense_prediction_cell import STATED_STRIDE
from deeplab_jax.models.lraspp import LRASPP
from deeplab_jax.models.network import SegmentationNetwork
from deeplab_jax.models.segformer import SegFormer
from deeplab_jax.models.unreached_taps import zero_unreached_taps
from deeplab_jax.parallel import halo

#: The network of each `model.head`.
HEADS: Mapping[str, type[SegmentationNetwork]] = {
    "deeplab": DeepLabV3Plus,
    "lraspp": LRASPP,
    "segformer": SegFormer,
}

# Initialization runs once, and its program is long: one random draw per kernel. XLA:CPU compiles it four times faster
# without optimizations.
_INIT_COMPILER_OPTIONS = {"cpu": {"xla_backend_optimization_level": 0}}


def build_model(
    model: ConfigDict,
    num_classes: int,
    *,
    platform: str | None = None,
    compute_dtype: str = "float32",
    **overrides: Any,
) -> SegmentationNetwork:
    """Builds the network that `config.model` describes. Touches no device.

    Args:
      model: the `model` group of a config.
      num_classes: number of classes of the data set.
      platform: the platform that the network will run on, "cpu", "gpu" or "tpu". It selects the operations, see
        `deeplab_jax.ops.select`. By default they are plain XLA, `deeplab_jax.ops.XLA`.
      compute_dtype: float32, bfloat16 or float64 (for tests).
      **overrides: attributes of the network that replace fields of the config or are not among them, such as `ops`.

    Raises:
      UserError: a field has a value for which no network can be built.
    """
    fields = {key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in model.items()}
    if platform is not None:
        fields["ops"] = ops.select(platform)
    fields |= overrides
    if fields["backbone"] not in BACKBONES:
        raise UserError(
            f"model.backbone={fields['backbone']!r} does not exist{suggest(str(fields['backbone']), BACKBONES)}"
        )
    check_fields("model", fields)
    _check_lengths(fields)
    head = HEADS[fields.pop("head")]
    _check_output_stride(fields)
    _check_decoder(fields)
    if issubclass(head, DeepLabV3Plus):
        _check_rates(fields)
    _check_options(fields)
    _check_pooling(fields)
    for name in ("input_mean", "input_std"):
        if len(fields[name]) != fields["in_channels"]:
            raise UserError(
                f"model.{name} has {len(fields[name])} values, but model.in_channels is {fields['in_channels']}; "
                "set one value per channel"
            )
    check_value_range(fields["value_range"])
    return head(num_classes=num_classes, dtype=jnp.dtype(compute_dtype), **_fields_of_head(fields, head))


def build_for_mesh(
    config: ConfigDict,
    num_classes: int,
    mesh: Mesh | AbstractMesh,
    *,
    input_sizes: Mapping[str, Sequence[int]] | None = None,
) -> SegmentationNetwork:
    """Builds the config's network with the operations for the devices of a mesh. Touches no device.

    Args:
      config: a whole config.
      num_classes: number of classes of the data set.
      mesh: a mesh, or an abstract one, for which the operations are plain XLA.
      input_sizes: (height, width) of the network's inputs by the config field that sets them, see
        `deeplab_jax.data.EvalProtocol.input_sizes`; default: `data.image_size` alone.

    Raises:
      UserError: a field has a value for which no network can be built, or a convolution would gather whole images.
    """
    platform = mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else "unknown"
    operations = ops.select(platform, spatial=mesh.shape["spatial"] > 1)
    model = build_model(
        config.model,
        num_classes,
        compute_dtype=config.train.compute_dtype,
        ops=operations,
        remat="none" if operations.recomputes_activations else config.train.remat,
    )
    if mesh.shape["spatial"] > 1:
        for field, size in (input_sizes or {"data.image_size": config.data.image_size}).items():
            images = jax.ShapeDtypeStruct((1, *size, model.in_channels), np.uint8)
            traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0])(abstract_variables(model), images)
            halo.check_halo(traced.jaxpr, mesh.shape["spatial"], field=field)
    return model


def abstract_variables(model: nn.Module, sharding: jax.sharding.Sharding | None = None) -> Any:
    """Returns shapes, dtypes and shardings of `params` and `batch_stats` without computing anything."""
    shapes = jax.eval_shape(lambda: initial_variables(model, jax.random.PRNGKey(0)))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def initial_variables(model: nn.Module, rng: Any, *, image_size: Sequence[int] | None = None) -> dict[str, Any]:
    """Initializes `params` and `batch_stats`. Traceable; without `jax.jit` it computes logits as well.

    Args:
      model: the network.
      rng: a random key.
      image_size: height and width of the images it will be trained on. With `model.zero_unreached_taps`, kernel taps
        that fall outside the features at this size start at zero.
    """
    # Variables depend neither on the image size nor on the operations; these take the least time to trace.
    images = jnp.zeros((1, 64, 64, model.in_channels), jnp.uint8)
    variables = model.clone(ops=ops.XLA).init(rng, images, train=False)
    if model.zero_unreached_taps and image_size is not None:
        variables = variables | {"params": zero_unreached_taps(variables["params"], model, image_size)}
    return variables


def random_variables(model: nn.Module, *, seed: int) -> dict[str, Any]:
    """Initializes `params` and `batch_stats` on the default device."""
    return jit_initializer(lambda: initial_variables(model, jax.random.PRNGKey(seed)))()


def jit_initializer(create: Callable[..., Any], sharding: Any = None) -> jax.stages.Wrapped:
    """Jits a function that initializes arrays, with the compiler options of a program that runs once.

    Args:
      create: function that returns the arrays.
      sharding: one sharding for all outputs, or one per output.
    """
    return jax.jit(create, out_shardings=sharding, compiler_options=initializer_options())


def initializer_options() -> dict[str, Any] | None:
    """Returns the compiler options of `jit_initializer`."""
    return _INIT_COMPILER_OPTIONS.get(jax.default_backend())


def _fields_of_head(fields: Mapping[str, Any], head: type[SegmentationNetwork]) -> dict[str, Any]:
    """Returns the fields that the head takes, and checks that the others are at their defaults.

    Raises:
      UserError: a field is set that this head does not have.
    """
    taken = {field.name for field in dataclasses.fields(head)}
    for name in sorted(fields.keys() - taken):
        if name not in FIELDS["model"] or fields[name] != FIELDS["model"][name].default:
            raise UserError(
                f"model.{name} is set, but the head {head.__name__} does not take it; remove it, or start from a "
                "config of this head (see `deeplab-jax configs`)"
            )
    return {name: value for name, value in fields.items() if name in taken}


def _check_lengths(fields: Mapping[str, Any]) -> None:
    """Checks that tracing the network ends: a config can come with the weights of a stranger."""
    for name, value in fields.items():
        if isinstance(value, tuple) and len(value) > budget.MODEL_NUMBERS:
            raise UserError(f"model.{name} has {len(value)} values; at most {budget.MODEL_NUMBERS} are possible")


def _check_output_stride(fields: Mapping[str, Any]) -> None:
    largest = 32 * 2 ** fields["cascade_blocks"]
    if fields["output_stride"] > largest:
        raise UserError(
            f"model.output_stride={fields['output_stride']} needs copies of the last stage, but with "
            f"model.cascade_blocks={fields['cascade_blocks']} the largest stride is {largest}; change one of them"
        )


def _check_decoder(fields: Mapping[str, Any]) -> None:
    """Checks the fields that only the decoders of the papers take."""
    if fields["decoder"] not in ("paper", "separable"):
        for name in ("decoder_convs", "low_level_strides"):
            if fields[name] != FIELDS["model"][name].default:
                raise UserError(
                    f"model.{name} is set, but the decoder {fields['decoder']} does not take it; remove it, or set "
                    "model.decoder to paper or separable"
                )


def _check_rates(fields: Mapping[str, Any]) -> None:
    stride = fields["output_stride"]
    if fields["aspp"] == "dpc" and stride > STATED_STRIDE:
        raise UserError(
            f"model.aspp='dpc' has no rates for model.output_stride={stride}; set it to {STATED_STRIDE} or less"
        )
    if fields["aspp"] != "parallel":
        return
    try:
        scale_rates(fields["atrous_rates"], fields["atrous_rates_stride"], stride)
    except ValueError as error:
        raise UserError(f"model.{error}; change them or model.output_stride") from None


def _check_pooling(fields: Mapping[str, Any]) -> None:
    """Checks the fields of image-level pooling, which are pairs."""
    window, stride = fields["image_pooling_window"], fields["image_pooling_stride"]
    if len(window) not in (0, 2) or len(stride) != 2:
        raise UserError(
            f"model.image_pooling_window={window} and model.image_pooling_stride={stride} must be (height, width); an "
            "empty window pools the whole image"
        )
    if not window and stride != FIELDS["model"]["image_pooling_stride"].default:
        raise UserError("model.image_pooling_stride is set, but model.image_pooling_window is empty; set the window")


def _check_options(fields: Mapping[str, Any]) -> None:
    """Checks the fields that only some backbones take."""
    name, spec = fields["backbone"], BACKBONES[fields["backbone"]]
    for option, unused in OPTIONS.items():
        if fields[option] != unused and option not in spec.options:
            raise UserError(f"model.{option} is set, but {name} does not take it; remove it")
    stride = fields["output_stride"]
    if spec.output_strides and stride not in spec.output_strides:
        strides = " or ".join(map(str, spec.output_strides))
        raise UserError(f"model.output_stride={stride}, but {name} has only {strides}; set it to {strides}")
    wanted = len(OPTIONS["layer_norm_epsilons"])
    if len(fields["layer_norm_epsilons"]) != wanted:
        raise UserError(f"model.layer_norm_epsilons has {len(fields['layer_norm_epsilons'])} values; set {wanted}")
    rates = len(fields["multi_grid"])
    if rates and rates != spec.last_stage_units:
        raise UserError(
            f"model.multi_grid has {rates} rates, but {name} takes {spec.last_stage_units}; set one rate per unit of "
            "its last stage (Xception: per separable convolution of its last unit)"
        )
