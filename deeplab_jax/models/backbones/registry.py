"""The backbones by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from deeplab_jax.config import FIELDS
from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones.efficientnet_lite import efficientnet_lite
from deeplab_jax.models.backbones.mit import MixTransformer
from deeplab_jax.models.backbones.mobilenet_v2 import mobilenet_v2
from deeplab_jax.models.backbones.mobilenet_v3 import mobilenet_v3
from deeplab_jax.models.backbones.resnet_v1 import ResNetV1
from deeplab_jax.models.backbones.resnet_v2 import ResNetV2
from deeplab_jax.models.backbones.xception import Xception, xception_blocks

#: Fields of `config.model` that only some backbones take, with the values that leave them unused.
OPTIONS = {
    name: FIELDS["model"][name].default
    for name in ("multi_grid", "width_multiplier", "cascade_blocks", "drop_path", "layer_norm_epsilons", "gelu")
}


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """A backbone and the arguments that make one variant of it.

    Attributes:
      build: a Flax module class, or a function that returns a module. It takes the keyword arguments `layers`
        (`deeplab_jax.models.Layers`), `output_stride`, `spread_converted` and `name`, those in `arguments` and those in
        `options`. The module takes normalized images and returns a dict of endpoints with at least `low_level_features`
        (stride 4, for the decoder) and `features` (at the output stride). With `mid_level_features` (stride 8) it
        supports decoders of two low-level features.
      arguments: keyword arguments of this variant.
      options: the fields of `config.model` out of `OPTIONS` that the backbone takes.
      last_stage_units: number of units in the last stage, for `multi_grid`. Xception's last stage is one unit whose
        three convolutions have a rate each.
      output_strides: the output strides that it can have; () for those that its strides and atrous conversion reach.
      pyramid: names of four endpoints at strides 4, 8, 16 and 32, or the output stride if it is smaller, for heads that
        join several stages.
    """

    build: Callable[..., nn.Module]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: tuple[str, ...] = ()
    last_stage_units: int | None = None
    output_strides: tuple[int, ...] = ()
    pyramid: tuple[str, str, str, str] = ("stage1", "stage2", "stage3", "stage4")

    def create(self, **arguments: Any) -> nn.Module:
        """Creates the module."""
        return self.build(**self.arguments, **arguments)


def register_backbone(name: str, spec: BackboneSpec, *, overwrite: bool = False) -> None:
    """Makes a backbone available as `config.model.backbone`.

    Args:
      name: the name of the backbone.
      spec: how to build it.
      overwrite: replace a backbone of this name, for instance when a notebook cell runs again.

    Raises:
      UserError: a backbone of this name exists.
    """
    if name in BACKBONES and not overwrite:
        raise UserError(f"backbone {name!r} is already registered; choose another name or pass overwrite=True")
    BACKBONES[name] = spec


def _resnet(build: Callable[..., nn.Module], *blocks: int, **arguments: Any) -> BackboneSpec:
    options: dict[str, Any] = {"options": ("multi_grid", "cascade_blocks"), "last_stage_units": blocks[-1]}
    if build is ResNetV1 and arguments.get("strided_unit") == "last":
        options["pyramid"] = ("low_level_features", "stage1", "stage2", "stage4")
    elif build is ResNetV2:
        options["pyramid"] = ("stage1", "stage2", "stage3", "features")
    return BackboneSpec(build, {"blocks": blocks} | arguments, **options)


def _mobilenet_v2(**arguments: Any) -> BackboneSpec:
    return BackboneSpec(mobilenet_v2, arguments, options=("width_multiplier",), pyramid=_INVERTED)


def _efficientnet_lite(**arguments: Any) -> BackboneSpec:
    return BackboneSpec(efficientnet_lite, arguments, pyramid=_INVERTED)


def _mobilenet_v3(variant: str, taps: str) -> BackboneSpec:
    return BackboneSpec(mobilenet_v3, {"variant": variant, "taps": taps})


def _xception(middle_units: int, **arguments: Any) -> BackboneSpec:
    blocks = xception_blocks(middle_units, **arguments)
    return BackboneSpec(Xception, {"blocks": blocks}, options=("multi_grid",), last_stage_units=3)


def _mit(*blocks: int, width: int) -> BackboneSpec:
    channels = tuple(width * factor for factor in (1, 2, 5, 8))
    return BackboneSpec(
        MixTransformer,
        {"channels": channels, "blocks": blocks},
        options=("drop_path", "layer_norm_epsilons", "gelu"),
        output_strides=(32,),
    )


_INVERTED = ("stage2", "stage3", "stage5", "stage7")  # of networks of inverted residuals
_V1C = {"stem": "v1c"}
_BETA = {"stem": "deep", "strided_unit": "last"}
_KERASCV = {"strided_unit": "last", "final_norm": False}

#: Values of `model.backbone`. `register_backbone` adds to it.
BACKBONES: dict[str, BackboneSpec] = {
    # ResNet v1 as in torchvision: 7x7 stem, stride in the 3x3 convolution of the first block of a stage.
    "resnet18_v1": _resnet(ResNetV1, 2, 2, 2, 2, block="basic"),
    "resnet34_v1": _resnet(ResNetV1, 3, 4, 6, 3, block="basic"),
    "resnet50_v1": _resnet(ResNetV1, 3, 4, 6, 3),
    "resnet101_v1": _resnet(ResNetV1, 3, 4, 23, 3),
    "resnet152_v1": _resnet(ResNetV1, 3, 8, 36, 3),
    # ResNet v1 as in MMSegmentation: a stem of three 3x3 convolutions (c) and basic blocks with one atrous convolution.
    # Its ResNet-50b and ResNet-101b are `resnet50_v1` and `resnet101_v1`.
    "resnet18_v1b": _resnet(ResNetV1, 2, 2, 2, 2, block="basic", atrous_conv2=False),
    "resnet18_v1c": _resnet(ResNetV1, 2, 2, 2, 2, block="basic", atrous_conv2=False, **_V1C),
    "resnet50_v1c": _resnet(ResNetV1, 3, 4, 6, 3, **_V1C),
    "resnet101_v1c": _resnet(ResNetV1, 3, 4, 23, 3, **_V1C),
    # ResNet v1 as in research/deeplab: stem of three 3x3 convolutions, stride in the last block of stages 1 to 3.
    "resnet50_v1_beta": _resnet(ResNetV1, 3, 4, 6, 3, **_BETA),
    "resnet101_v1_beta": _resnet(ResNetV1, 3, 4, 23, 3, **_BETA),
    "resnet152_v1_beta": _resnet(ResNetV1, 3, 8, 36, 3, **_BETA),
    # One narrow block per stage, for quick runs on small images.
    "resnet10_v1_slim": _resnet(ResNetV1, 1, 1, 1, 1, block="basic", stem="deep", width=24),
    # ResNet v2 (pre-activation), stride in the first block of a stage.
    "resnet50_v2": _resnet(ResNetV2, 3, 4, 6, 3),
    "resnet101_v2": _resnet(ResNetV2, 3, 4, 23, 3),
    "resnet152_v2": _resnet(ResNetV2, 3, 8, 36, 3),
    # ResNet v2 as in KerasCV: stride in the last block of a stage, raw sums as features.
    "resnet50_v2_kerascv": _resnet(ResNetV2, 3, 4, 6, 3, **_KERASCV),
    "resnet101_v2_kerascv": _resnet(ResNetV2, 3, 4, 23, 3, **_KERASCV),
    "resnet152_v2_kerascv": _resnet(ResNetV2, 3, 8, 36, 3, **_KERASCV),
    # MobileNetV2 of any width; `full` ends in the 1x1 convolution to 1280 features.
    "mobilenet_v2": _mobilenet_v2(),
    "mobilenet_v2_full": _mobilenet_v2(final_conv=True),
    # MobileNetV3 as in torchvision, and as in research/deeplab: half the channels after stride 16, depthwise features
    # as low-level features.
    "mobilenet_v3_large": _mobilenet_v3("large", taps="strided_unit"),
    "mobilenet_v3_small": _mobilenet_v3("small", taps="strided_unit"),
    "mobilenet_v3_large_seg": _mobilenet_v3("large_seg", taps="depthwise"),
    "mobilenet_v3_small_seg": _mobilenet_v3("small_seg", taps="depthwise"),
    "efficientnet_lite0": _efficientnet_lite(width=1.0, depth=1.0),
    "efficientnet_lite1": _efficientnet_lite(width=1.0, depth=1.1),
    "efficientnet_lite2": _efficientnet_lite(width=1.1, depth=1.2),
    # Modified aligned Xception of research/deeplab.
    "xception41": _xception(8),
    "xception65": _xception(16),
    "xception71": _xception(16, long_entry=True),
    # Mix Transformer (SegFormer), arXiv 2105.15203, table 6.
    "mit_b0": _mit(2, 2, 2, 2, width=32),
    "mit_b1": _mit(2, 2, 2, 2, width=64),
    "mit_b2": _mit(3, 4, 6, 3, width=64),
    "mit_b3": _mit(3, 4, 18, 3, width=64),
    "mit_b4": _mit(3, 8, 27, 3, width=64),
    "mit_b5": _mit(3, 6, 40, 3, width=64),
}
