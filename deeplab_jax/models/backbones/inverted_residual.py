"""Inverted residuals: the unit of MobileNetV2 (arXiv 1801.04381, section 3.3), EfficientNet-Lite and MobileNetV3."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from deeplab_jax.models.atrous import Unit, plan_units
from deeplab_jax.models.layers import Layers
from deeplab_jax.ops.precision import accumulator

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "hard_swish": nn.hard_swish,  # x * relu6(x + 3) / 6
}

_LEVELS = {4: "low_level_features", 8: "mid_level_features"}


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate in [0, 1] that depends on the means of all channels (arXiv 1709.01507).

    As in MobileNetV3 (arXiv 1905.02244, section 5.3), the gate has a quarter of the channels inside and ends in a hard
    sigmoid, relu6(x + 3) / 6.
    """

    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        conv = self.layers.conv
        gate = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=accumulator(x.dtype)).astype(x.dtype)
        gate = nn.relu(conv(scaled_features(x.shape[-1], 0.25), use_bias=True, name="squeeze_conv")(gate))
        gate = nn.hard_sigmoid(conv(x.shape[-1], use_bias=True, name="excite_conv")(gate))
        return x * gate


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise convolution, a 1x1 projection without activation, and a shortcut if shapes agree.

    Without new channels to expand to, there is no first convolution.
    """

    layers: Layers
    features: int
    unit: Unit
    expanded: int
    kernel_size: int
    squeeze: bool
    activation: str
    add_input: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch out_h out_w features"], Float[Array, "batch out_h out_w expanded"]]:
        """Returns the output and the depthwise features, before squeeze-and-excitation."""
        conv, norm, activation = self.layers.conv, self.layers.norm, ACTIVATIONS[self.activation]
        shortcut = x
        if self.expanded != x.shape[-1]:
            x = conv(self.expanded, name="expand_conv")(x)
            x = activation(norm(name="expand_norm")(x))
        x = self.layers.depthwise_conv(
            kernel_size=self.kernel_size, stride=self.unit.stride, rate=self.unit.rate, name="depthwise_conv"
        )(x)
        x = depthwise = activation(norm(name="depthwise_norm")(x))
        if self.squeeze:
            x = SqueezeExcite(self.layers, name="squeeze_excite")(x)
        x = norm(name="project_norm")(conv(self.features, name="project_conv")(x))
        return self.layers.add(shortcut, x) if self.add_input else x, depthwise


class Stage(NamedTuple):
    """A stage of units with the same output; only the first one is strided.

    Attributes:
      features: number of output channels of each unit.
      units: number of units.
      stride: the stride of the first unit.
      expansion: number of channels of the depthwise convolution by those of the unit's input.
      kernel_size: height and width of the depthwise kernels.
      expanded: number of channels of each unit's depthwise convolution, instead of `expansion`.
      squeeze: whether the units have squeeze-and-excitation.
      activation: a key of `ACTIVATIONS`.
    """

    features: int
    units: int
    stride: int
    expansion: int = 1
    kernel_size: int = 3
    expanded: tuple[int, ...] = ()
    squeeze: bool = False
    activation: str = "relu6"


class InvertedResidualNetwork(nn.Module):
    """A 3x3 convolution of stride 2 and stages of inverted residuals, with atrous conversion.

    Attributes:
      layers: the layer constructors.
      stem_features: number of output channels of the first convolution.
      stages: the stages in order.
      final_features: number of output channels of a 1x1 convolution with BatchNorm and activation after the stages, or
        0 for none.
      activation: the activation of the first and the last convolution, a key of `ACTIVATIONS`.
      taps: what the endpoints `low_level_features` and `mid_level_features` are, at strides 4 and 8: the output of the
        last unit at the stride (`stage`), the output of the first one (`strided_unit`, as in torchvision's segmentation
        networks), or the depthwise features of the last one (`depthwise`, as in research/deeplab).
      output_stride: 4, 8, 16 or 32.
      spread_converted: see `plan_units`.
    """

    layers: Layers
    stem_features: int
    stages: Sequence[Stage]
    final_features: int = 0
    activation: str = "relu6"
    taps: str = "stage"
    output_stride: int = 32
    spread_converted: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> dict[str, Float[Array, "batch _ _ _"]]:
        conv, norm, activation = self.layers.conv, self.layers.norm, ACTIVATIONS[self.activation]
        x = conv(self.stem_features, kernel_size=3, stride=2, name="stem_conv")(x)
        x = activation(norm(name="stem_norm")(x))

        strides = [stage.stride if i == 0 else 1 for stage in self.stages for i in range(stage.units)]
        plan = iter(plan_units(strides, self.output_stride, stem_stride=2, spread_converted=self.spread_converted))
        block_class = self.layers.unit(InvertedResidual)
        endpoints, stride = {}, 2
        for number, stage in enumerate(self.stages, 1):
            stride *= stage.stride
            for i in range(stage.units):
                strided = i == 0 and stage.stride > 1
                x, depthwise = block_class(
                    self.layers,
                    stage.features,
                    next(plan),
                    stage.expanded[i] if stage.expanded else stage.expansion * x.shape[-1],
                    stage.kernel_size,
                    stage.squeeze,
                    stage.activation,
                    # By the published stride: atrous conversion must not add a shortcut that the original lacks.
                    add_input=not strided and x.shape[-1] == stage.features,
                    name=f"stage{number}_block{i + 1}",
                )(x)
                if stride in _LEVELS and (strided or self.taps != "strided_unit"):
                    endpoints[_LEVELS[stride]] = depthwise if self.taps == "depthwise" else x
            endpoints[f"stage{number}"] = x
        if self.final_features:
            x = conv(self.final_features, name="final_conv")(x)
            x = activation(norm(name="final_norm")(x))
        return endpoints | {"features": x}


def scaled_features(features: int, multiplier: int | float, divisor: int = 8) -> int:
    """Scales a width to a multiple of `divisor`, at most a tenth below the product (slim's `_make_divisible`)."""
    scaled = max(divisor, math.floor(features * multiplier + divisor / 2) // divisor * divisor)
    return scaled + divisor if scaled < 0.9 * features * multiplier else scaled
