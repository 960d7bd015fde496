"""ResNet v1 (arXiv 1512.03385), with BatchNorm after each convolution, as in torchvision and research/deeplab."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.atrous import Unit, plan_units
from deeplab_jax.models.layers import Layers


class BasicBlockV1(nn.Module):
    """Two 3x3 convolutions, the first one strided. Returns the same as `BottleneckV1`."""

    layers: Layers
    features: int
    unit: Unit

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch out_h out_w features"], Float[Array, "batch out_h out_w features"]]:
        conv, norm = self.layers.conv, self.layers.norm
        residual = conv(self.features, kernel_size=3, stride=self.unit.stride, rate=self.unit.rate, name="conv1")(x)
        residual = nn.relu(norm(name="norm1")(residual))
        residual = norm(name="norm2")(
            conv(self.features, kernel_size=3, rate=self.unit.later_rate, name="conv2")(residual)
        )
        return nn.relu(self.layers.add(_shortcut(self, x, self.features), residual)), residual


class BottleneckV1(nn.Module):
    """1x1, strided or atrous 3x3, 1x1 to four times the width; ReLU after the sum with the shortcut.

    Returns the output of the unit and its residual branch before the sum.
    """

    layers: Layers
    features: int
    unit: Unit

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch out_h out_w expanded"], Float[Array, "batch out_h out_w expanded"]]:
        conv, norm = self.layers.conv, self.layers.norm
        expanded = 4 * self.features
        residual = nn.relu(norm(name="norm1")(conv(self.features, name="conv1")(x)))
        residual = conv(self.features, kernel_size=3, stride=self.unit.stride, rate=self.unit.rate, name="conv2")(
            residual
        )
        residual = nn.relu(norm(name="norm2")(residual))
        residual = norm(name="norm3")(conv(expanded, name="conv3")(residual))
        return nn.relu(self.layers.add(_shortcut(self, x, expanded), residual)), residual


def _shortcut(block: nn.Module, x: Array, features: int) -> Array:
    """Returns the input at the stride of the block, projected if the number of channels differs."""
    if x.shape[-1] == features:
        return x[:, :: block.unit.stride, :: block.unit.stride]
    x = block.layers.conv(features, stride=block.unit.stride, name="shortcut_conv")(x)
    return block.layers.norm(name="shortcut_norm")(x)


class ResNetV1(nn.Module):
    """ResNet v1 with atrous conversion.

    Attributes:
      layers: the layer constructors.
      blocks: number of units in each stage.
      block: `bottleneck` (ResNet-50 and deeper) or `basic` (ResNet-18, ResNet-34).
      stem: `conv7`, one 7x7 convolution, or `deep`, three 3x3 convolutions (research/deeplab, `resnet_v1_beta.py`).
      strided_unit: the strided unit of a stage: the `first` in stages 2 to 4 (torchvision), or the `last` in stages 1
        to 3 (research/deeplab). With `last`, the low-level features are the residual branch of the last unit at
        stride 4, the second to last of stage 1.
      width: width of the first stage; it doubles with each stage.
      output_stride: 4, 8, 16 or 32.
      multi_grid: factors of the rates of the last stage, one per unit, or () for ones (DeepLabv3, section 3.2.1).
      spread_converted: see `plan_units`.
    """

    layers: Layers
    blocks: Sequence[int]
    block: str = "bottleneck"
    stem: str = "conv7"
    strided_unit: str = "first"
    width: int = 64
    output_stride: int = 32
    multi_grid: Sequence[int] = ()
    spread_converted: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> dict[str, Float[Array, "batch _ _ _"]]:
        x = self._run_stem(x)
        x = self.layers.max_pool(x, window=3, stride=2)
        block_class = self.layers.unit({"bottleneck": BottleneckV1, "basic": BasicBlockV1}[self.block])
        positions = [(stage, block) for stage, count in enumerate(self.blocks) for block in range(count)]
        strides = [self._stride(*position) for position in positions]
        plan = plan_units(strides, self.output_stride, stem_stride=4, spread_converted=self.spread_converted)
        multi_grid = tuple(self.multi_grid) or (1,) * self.blocks[-1]
        endpoints = {}
        for (stage, block), unit in zip(positions, plan, strict=True):
            if stage == 3:
                unit = unit.spread(multi_grid[block])
            name = f"stage{stage + 1}_block{block + 1}"
            x, residual = block_class(self.layers, self.width * 2**stage, unit, name=name)(x)
            if self.strided_unit == "last" and (stage, block) == (0, self.blocks[0] - 2):
                endpoints["low_level_features"] = residual
            if block == self.blocks[stage] - 1:
                endpoints[f"stage{stage + 1}"] = x
        if self.strided_unit == "first":
            endpoints["low_level_features"] = endpoints["stage1"]
        return endpoints | {"features": x}

    def _run_stem(self, x: Array) -> Array:
        conv, norm = self.layers.conv, self.layers.norm
        if self.stem == "conv7":
            return nn.relu(norm(name="stem_norm")(conv(self.width, kernel_size=7, stride=2, name="stem_conv")(x)))
        for i, (features, stride) in enumerate(((self.width, 2), (self.width, 1), (2 * self.width, 1)), 1):
            x = conv(features, kernel_size=3, stride=stride, name=f"stem_conv{i}")(x)
            x = nn.relu(norm(name=f"stem_norm{i}")(x))
        return x

    def _stride(self, stage: int, block: int) -> int:
        if self.strided_unit == "last":
            return 2 if stage < 3 and block == self.blocks[stage] - 1 else 1
        return 2 if stage > 0 and block == 0 else 1
