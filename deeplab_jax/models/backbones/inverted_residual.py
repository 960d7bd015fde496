"""The unit of MobileNetV2 (arXiv 1801.04381, section 3.3) and EfficientNet-Lite, and networks made of it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.atrous import Unit, plan_units
from deeplab_jax.models.layers import Layers


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise convolution, a 1x1 projection without activation, and a shortcut if shapes agree.

    The activations are ReLU6. With an expansion of 1 there is no first convolution.
    """

    layers: Layers
    features: int
    unit: Unit
    expansion: int
    kernel_size: int
    add_input: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch out_h out_w features"]:
        conv, norm = self.layers.conv, self.layers.norm
        shortcut = x
        if self.expansion != 1:
            x = conv(self.expansion * x.shape[-1], name="expand_conv")(x)
            x = nn.relu6(norm(name="expand_norm")(x))
        x = self.layers.depthwise_conv(
            kernel_size=self.kernel_size, stride=self.unit.stride, rate=self.unit.rate, name="depthwise_conv"
        )(x)
        x = nn.relu6(norm(name="depthwise_norm")(x))
        x = norm(name="project_norm")(conv(self.features, name="project_conv")(x))
        return self.layers.add(shortcut, x) if self.add_input else x


class Stage(NamedTuple):
    """A stage of equal units; only the first one is strided."""

    features: int
    units: int
    stride: int
    expansion: int
    kernel_size: int = 3


class InvertedResidualNetwork(nn.Module):
    """A 3x3 convolution of stride 2 and stages of inverted residuals, with atrous conversion.

    Attributes:
      layers: the layer constructors.
      stem_features: number of output channels of the first convolution.
      stages: the stages in order; the last one at stride 4 provides the low-level features, the last one at stride 8
        the mid-level features. (research/deeplab taps the depthwise convolution of the last unit of the same stages,
        `feature_extractor.py`; segmentation_models.pytorch and KerasHub the stages.)
      final_features: number of output channels of a 1x1 convolution with BatchNorm and ReLU6 after the stages, or 0
        for none.
      output_stride: 4, 8, 16 or 32.
      spread_converted: see `plan_units`.
    """

    layers: Layers
    stem_features: int
    stages: Sequence[Stage]
    final_features: int = 0
    output_stride: int = 32
    spread_converted: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> dict[str, Float[Array, "batch _ _ _"]]:
        conv, norm = self.layers.conv, self.layers.norm
        x = conv(self.stem_features, kernel_size=3, stride=2, name="stem_conv")(x)
        x = nn.relu6(norm(name="stem_norm")(x))

        strides = [stage.stride if i == 0 else 1 for stage in self.stages for i in range(stage.units)]
        plan = iter(plan_units(strides, self.output_stride, stem_stride=2, spread_converted=self.spread_converted))
        block_class = self.layers.unit(InvertedResidual)
        endpoints, stride = {}, 2
        for number, stage in enumerate(self.stages, 1):
            for i in range(stage.units):
                x = block_class(
                    self.layers,
                    stage.features,
                    next(plan),
                    stage.expansion,
                    stage.kernel_size,
                    # By the published stride: atrous conversion must not add a shortcut that the original lacks.
                    add_input=(i > 0 or stage.stride == 1) and x.shape[-1] == stage.features,
                    name=f"stage{number}_block{i + 1}",
                )(x)
            endpoints[f"stage{number}"] = x
            stride *= stage.stride
            if stride == 4:
                endpoints["low_level_features"] = x
            elif stride == 8:
                endpoints["mid_level_features"] = x
        if self.final_features:
            x = conv(self.final_features, name="final_conv")(x)
            x = nn.relu6(norm(name="final_norm")(x))
        return endpoints | {"features": x}


def scaled_features(features: int, multiplier: int | float, divisor: int = 8) -> int:
    """Scales a width to a multiple of `divisor`, at most a tenth below the product (slim's `_make_divisible`)."""
    scaled = max(divisor, math.floor(features * multiplier + divisor / 2) // divisor * divisor)
    return scaled + divisor if scaled < 0.9 * features * multiplier else scaled
