"""ResNet v1 (arXiv 1512.03385), BatchNorm after each convolution, in torchvision's and in research/deeplab's layout."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.atrous import plan_units
from deeplab_jax.models.layers import Layers

_EXPANSION = 4


class BottleneckV1(nn.Module):
    """1x1, strided or atrous 3x3, 1x1 to four times the features; ReLU after the sum with the shortcut.

    Returns the unit's output and its residual branch before the sum.
    """

    layers: Layers
    features: int
    stride: int
    rate: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch out_h out_w expanded"], Float[Array, "batch out_h out_w expanded"]]:
        conv, norm = self.layers.conv, self.layers.norm
        expanded = _EXPANSION * self.features
        residual = nn.relu(norm(name="norm1")(conv(self.features, name="conv1")(x)))
        residual = conv(self.features, kernel_size=3, stride=self.stride, rate=self.rate, name="conv2")(residual)
        residual = nn.relu(norm(name="norm2")(residual))
        residual = norm(name="norm3")(conv(expanded, name="conv3")(residual))
        if x.shape[-1] != expanded:
            shortcut = conv(expanded, stride=self.stride, name="shortcut_conv")(x)
            shortcut = norm(name="shortcut_norm")(shortcut)
        else:
            shortcut = x[:, :: self.stride, :: self.stride]
        return nn.relu(shortcut + residual), residual


class ResNetV1(nn.Module):
    """ResNet v1 with atrous conversion.

    Attributes:
      layers: the layer constructors.
      blocks: units in each of the four stages.
      variant: `torchvision` has a 7x7 stem and the stride in the first unit of stages 2 to 4; `beta`
        (research/deeplab, `resnet_v1_beta.py`) a stem of three 3x3 convolutions and the stride in the last unit of
        stages 1 to 3, so its low-level features are the residual branch of the last unit but one of stage 1, the last
        that runs at stride 4.
      width: features of the first stage; doubles with each.
      output_stride: 4, 8, 16 or 32.
      multi_grid: factors of the last stage's rates, one a unit; () for ones (DeepLabv3, section 3.2.1).
    """

    layers: Layers
    blocks: Sequence[int]
    variant: str = "torchvision"
    width: int = 64
    output_stride: int = 32
    multi_grid: Sequence[int] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> dict[str, Float[Array, "batch _ _ _"]]:
        beta = self.variant == "beta"
        conv, norm = self.layers.conv, self.layers.norm
        if beta:
            x = conv(self.width, kernel_size=3, stride=2, name="stem_conv1")(x)
            x = nn.relu(norm(name="stem_norm1")(x))
            for i, features in ((2, self.width), (3, 2 * self.width)):
                x = nn.relu(norm(name=f"stem_norm{i}")(conv(features, kernel_size=3, name=f"stem_conv{i}")(x)))
        else:
            x = conv(self.width, kernel_size=7, stride=2, name="stem_conv")(x)
            x = nn.relu(norm(name="stem_norm")(x))
        x = self.layers.max_pool(x, window=3, stride=2)

        positions = [(stage, block) for stage, count in enumerate(self.blocks) for block in range(count)]
        plan = plan_units([self._stride(*position) for position in positions], self.output_stride, stem_stride=4)
        multi_grid = tuple(self.multi_grid) or (1,) * self.blocks[-1]
        endpoints = {}
        for (stage, block), (stride, rate) in zip(positions, plan, strict=True):
            if stage == 3:
                rate *= multi_grid[block]
            unit = BottleneckV1(
                self.layers, self.width * 2**stage, stride, rate, name=f"stage{stage + 1}_block{block + 1}"
            )
            x, residual = unit(x)
            if beta and stage == 0 and block == self.blocks[0] - 2:
                endpoints["low_level_features"] = residual
            if block == self.blocks[stage] - 1:
                endpoints[f"stage{stage + 1}"] = x
        if not beta:
            endpoints["low_level_features"] = endpoints["stage1"]
        return endpoints | {"features": x}

    def _stride(self, stage: int, block: int) -> int:
        if self.variant == "beta":
            return 2 if stage < 3 and block == self.blocks[stage] - 1 else 1
        return 2 if stage > 0 and block == 0 else 1
