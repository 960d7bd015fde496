"""Modified aligned Xception (arXiv 1802.02611, section 3.2) as in research/deeplab, `core/xception.py`.

Facts about the original, from tensorflow/models:

- Three separable convolutions make a unit, and the last one is strided. BatchNorm follows each depthwise and each
  pointwise convolution. ReLU precedes each depthwise convolution; in the last unit it follows both convolutions.
- Strided convolutions pad symmetrically; nothing is activated after a sum with the shortcut.
- A unit whose stride is left out runs at the rate before it, and later units at the multiplied one, as in `plan_units`.
  All three convolutions of a unit run at the rate of the unit.
- `core/feature_extractor.py`: the decoder reads the second separable convolution of the strided unit at stride 4, after
  BatchNorm and before ReLU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.atrous import Unit, plan_units
from deeplab_jax.models.layers import ConvNormAct, Layers

#: Names of the variants in the registry.
XCEPTIONS = ("xception41", "xception65", "xception71")

_TAPS = {4: "low_level_features", 8: "mid_level_features"}  # by stride


class Block(NamedTuple):
    """Equal units; `features` are those of the three separable convolutions of a unit."""

    name: str
    features: tuple[int, int, int]
    stride: int = 1
    units: int = 1
    shortcut: str = "conv"
    inner_relu: bool = False

    def unit_names(self) -> list[str]:
        """Returns the name of each unit's module."""
        return [self.name] if self.units == 1 else [f"{self.name}_unit{i}" for i in range(1, self.units + 1)]


def xception_blocks(middle_units: int, *, long_entry: bool = False) -> tuple[Block, ...]:
    """Returns the blocks of a variant.

    Args:
      middle_units: number of units of the middle flow.
      long_entry: whether the entry flow has five blocks, as in Xception-71, instead of three.
    """
    entry = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)) if long_entry else ((128, 2), (256, 2), (728, 2))
    return (
        *(Block(f"entry_block{i}", (features,) * 3, stride) for i, (features, stride) in enumerate(entry, 1)),
        Block("middle_block1", (728, 728, 728), units=middle_units, shortcut="sum"),
        Block("exit_block1", (728, 1024, 1024), stride=2),
        Block("exit_block2", (1536, 1536, 2048), shortcut="none", inner_relu=True),
    )


class SeparableConv(nn.Module):
    """ReLU, a depthwise 3x3 convolution, BatchNorm, a 1x1 convolution, BatchNorm."""

    layers: Layers
    features: int
    stride: int
    rate: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch out_h out_w features"]:
        conv, norm = self.layers.depthwise_conv, self.layers.norm
        x = conv(kernel_size=3, stride=self.stride, rate=self.rate, name="depthwise_conv")(nn.relu(x))
        x = norm(name="depthwise_norm")(x)
        return norm(name="norm")(self.layers.conv(self.features, name="conv")(x))


class XceptionUnit(nn.Module):
    """Three separable convolutions and a shortcut.

    Returns the output of the unit, and the output of the second separable convolution.

    Attributes:
      layers: the layer constructors.
      block: the block that the unit belongs to.
      unit: the stride of the last separable convolution, and the rate of all.
      rates: factors of the rate, one per separable convolution.
    """

    layers: Layers
    block: Block
    unit: Unit
    rates: Sequence[int]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch out_h out_w features"], Float[Array, "batch height width hidden"]]:
        outputs, residual = [], x
        for i, (features, factor) in enumerate(zip(self.block.features, self.rates, strict=True), 1):
            rate, name = factor * self.unit.rate, f"separable{i}"
            if self.block.inner_relu:
                conv = ConvNormAct(self.layers, features, kernel_size=3, rate=rate, separable=True, name=name)
            else:
                conv = SeparableConv(self.layers, features, self.unit.stride if i == 3 else 1, rate, name=name)
            residual = conv(residual)
            outputs.append(residual)
        if self.block.shortcut == "conv":
            x = self.layers.conv(self.block.features[-1], stride=self.unit.stride, name="shortcut_conv")(x)
            x = self.layers.norm(name="shortcut_norm")(x)
        # Not `layers.add` for the sum: no ReLU follows it.
        return residual if self.block.shortcut == "none" else x + residual, outputs[1]


class Xception(nn.Module):
    """Modified aligned Xception with atrous conversion.

    The endpoints are `stage1` to `stage4`, the outputs at strides 4, 8, 16 and 32 of the network without conversion;
    `low_level_features` (stride 4) and `mid_level_features` (stride 8), see the module; and `features`.

    Attributes:
      layers: the layer constructors.
      blocks: the blocks in order, see `xception_blocks`.
      stem_features: number of output channels of the two convolutions before the blocks.
      output_stride: 8, 16 or 32.
      multi_grid: factors of the rate of the last unit, one per separable convolution, or () for ones.
      spread_converted: see `plan_units`.
    """

    layers: Layers
    blocks: Sequence[Block]
    stem_features: tuple[int, int] = (32, 64)
    output_stride: int = 32
    multi_grid: Sequence[int] = ()
    spread_converted: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> dict[str, Float[Array, "batch _ _ _"]]:
        for i, (features, stride) in enumerate(zip(self.stem_features, (2, 1), strict=True), 1):
            x = self.layers.conv(features, kernel_size=3, stride=stride, name=f"stem_conv{i}")(x)
            x = nn.relu(self.layers.norm(name=f"stem_norm{i}")(x))

        units = [(block, name) for block in self.blocks for name in block.unit_names()]
        strides = [block.stride for block, _ in units]
        plan = plan_units(strides, self.output_stride, stem_stride=2, spread_converted=self.spread_converted)
        unit_class = self.layers.unit(XceptionUnit)
        endpoints, stride = {}, 2  # the stride of the network without conversion
        for (block, name), unit, next_stride in zip(units, plan, [*strides[1:], None], strict=True):
            rates = tuple(self.multi_grid) or (1, 1, 1) if next_stride is None else (1, 1, 1)
            x, hidden = unit_class(self.layers, block, unit, rates, name=name)(x)
            if block.stride > 1 and stride in _TAPS:
                endpoints[_TAPS[stride]] = hidden
            stride *= block.stride
            if next_stride != 1:
                endpoints[f"stage{stride.bit_length() - 2}"] = x
        return endpoints | {"features": x}
