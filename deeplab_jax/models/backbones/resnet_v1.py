"""ResNet v1 (arXiv 1512.03385), with BatchNorm after each convolution, as in torchvision and research/deeplab."""

import functools
from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.atrous import Unit, plan_stages
from deeplab_jax.models.layers import Layers


class BasicBlockV1(nn.Module):
    """Two 3x3 convolutions, the first one strided. Returns the same as `BottleneckV1`.

    With `atrous_conv2` both have the unit's rates, otherwise the second one stays dense.
    """

    layers: Layers
    features: int
    unit: Unit
    atrous_conv2: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch out_h out_w features"], Float[Array, "batch out_h out_w features"]]:
        conv, norm = self.layers.conv, self.layers.norm
        residual = conv(self.features, kernel_size=3, stride=self.unit.stride, rate=self.unit.rate, name="conv1")(x)
        residual = nn.relu(norm(name="norm1")(residual))
        rate = self.unit.later_rate if self.atrous_conv2 else 1
        residual = norm(name="norm2")(conv(self.features, kernel_size=3, rate=rate, name="conv2")(residual))
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
      stem: `conv7`, one 7x7 convolution; `deep`, three 3x3 convolutions (research/deeplab, `resnet_v1_beta.py`); or
        `v1c`, three of half the width of `deep` (MMSegmentation's `ResNetV1c`, from arXiv 1812.01187, section 4.2).
      strided_unit: the strided unit of a stage: the `first` in stages 2 to 4 (torchvision), or the `last` in stages 1
        to 3 (research/deeplab). With `last`, the low-level features are the residual branch of the last unit at
        stride 4, the second to last of stage 1, and the mid-level features the same of stage 2, as in research/deeplab
        (`feature_extractor.py`). With `first` they are the outputs of these stages.
      atrous_conv2: whether the second convolution of basic blocks is atrous too; MMSegmentation's is not.
      width: width of the first stage; it doubles with each stage.
      output_stride: 4, 8, 16 or 32, and with copies of the last stage up to 256.
      multi_grid: factors of the rates of the last stage, one per unit, or () for ones (DeepLabv3, section 3.2.1).
      cascade_blocks: number of copies of the last stage that follow it, see `plan_stages`. With strided last units, all
        but the last copy are strided, as in section 3.2; with strided first units, all copies are.
      spread_converted: see `plan_units`.
    """

    layers: Layers
    blocks: Sequence[int]
    block: str = "bottleneck"
    stem: str = "conv7"
    strided_unit: str = "first"
    atrous_conv2: bool = True
    width: int = 64
    output_stride: int = 32
    multi_grid: Sequence[int] = ()
    cascade_blocks: int = 0
    spread_converted: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> dict[str, Float[Array, "batch _ _ _"]]:
        x = self._run_stem(x)
        x = self.layers.max_pool(x, window=3, stride=2)
        plan = plan_stages(
            self.blocks,
            self._is_strided,
            self.output_stride,
            stem_stride=4,
            multi_grid=self.multi_grid,
            cascade_blocks=self.cascade_blocks,
            spread_converted=self.spread_converted,
        )
        if self.block == "basic":
            block_class = functools.partial(self.layers.unit(BasicBlockV1), atrous_conv2=self.atrous_conv2)
        else:
            block_class = self.layers.unit(BottleneckV1)
        endpoints, taps = {}, ("low_level_features", "mid_level_features")
        for stage, block, unit in plan:
            features, name = self.width * 2 ** min(stage, 3), f"stage{stage + 1}_block{block + 1}"
            x, residual = block_class(self.layers, features, unit, name=name)(x)
            endpoints[f"stage{stage + 1}"] = x
            if stage < len(taps):
                if self.strided_unit == "first":
                    endpoints[taps[stage]] = x
                elif block == self.blocks[stage] - 2:
                    endpoints[taps[stage]] = residual
        return endpoints | {"features": x}

    def _run_stem(self, x: Array) -> Array:
        conv, norm = self.layers.conv, self.layers.norm
        if self.stem == "conv7":
            return nn.relu(norm(name="stem_norm")(conv(self.width, kernel_size=7, stride=2, name="stem_conv")(x)))
        width = self.width if self.stem == "deep" else self.width // 2
        for i, (features, stride) in enumerate(((width, 2), (width, 1), (2 * width, 1)), 1):
            x = conv(features, kernel_size=3, stride=stride, name=f"stem_conv{i}")(x)
            x = nn.relu(norm(name=f"stem_norm{i}")(x))
        return x

    def _is_strided(self, stage: int, block: int) -> bool:
        if self.strided_unit == "last":
            return stage < 3 + self.cascade_blocks and block == self.blocks[min(stage, 3)] - 1
        return stage > 0 and block == 0
