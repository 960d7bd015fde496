"""ResNet v2 (arXiv 1603.05027), with BatchNorm and ReLU before each convolution, as published and as in KerasCV."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.atrous import Unit, plan_stages
from deeplab_jax.models.layers import Layers

_EXPANSION = 4


class BottleneckV2(nn.Module):
    """Pre-activation, then 1x1, strided or atrous 3x3, and 1x1 to four times the width, added to the shortcut."""

    layers: Layers
    features: int
    unit: Unit
    project_shortcut: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch out_h out_w expanded"]:
        conv, norm = self.layers.conv, self.layers.norm
        expanded = _EXPANSION * self.features
        preactivation = nn.relu(norm(name="preactivation_norm")(x))
        if self.project_shortcut:
            shortcut = conv(expanded, stride=self.unit.stride, use_bias=True, name="shortcut_conv")(preactivation)
        else:
            shortcut = x[:, :: self.unit.stride, :: self.unit.stride]
        residual = nn.relu(norm(name="norm1")(conv(self.features, name="conv1")(preactivation)))
        residual = conv(self.features, kernel_size=3, stride=self.unit.stride, rate=self.unit.rate, name="conv2")(
            residual
        )
        residual = nn.relu(norm(name="norm2")(residual))
        residual = conv(expanded, use_bias=True, name="conv3")(residual)
        # Not `layers.add`: BatchNorm reads this sum first, and keeps it for its gradient.
        return shortcut + residual


class ResNetV2(nn.Module):
    """ResNet v2 with atrous conversion.

    Attributes:
      layers: the layer constructors.
      blocks: number of units in each stage.
      strided_unit: the strided unit of stages 2 to 4: the `first`, or the `last` (keras_cv 0.9,
        `resnet_v2_backbone.py`), which costs 2.8 times the multiply-adds. The parameters are the same.
      final_norm: whether BatchNorm and ReLU follow the last sum; KerasCV returns the raw sum.
      width: width of the first stage; it doubles with each stage.
      output_stride: 4, 8, 16 or 32, and with copies of the last stage up to 256.
      multi_grid: factors of the rates of the last stage, one per unit, or () for ones (DeepLabv3, section 3.2.1).
      cascade_blocks: number of copies of the last stage that follow it, see `plan_stages`.
      spread_converted: see `plan_units`.
    """

    layers: Layers
    blocks: Sequence[int]
    strided_unit: str = "first"
    final_norm: bool = True
    width: int = 64
    output_stride: int = 32
    multi_grid: Sequence[int] = ()
    cascade_blocks: int = 0
    spread_converted: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> dict[str, Float[Array, "batch _ _ _"]]:
        x = self.layers.conv(self.width, kernel_size=7, stride=2, use_bias=True, name="stem_conv")(x)
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
        block_class = self.layers.unit(BottleneckV2)
        endpoints = {}
        for stage, block, unit in plan:
            name, features = f"stage{stage + 1}_block{block + 1}", self.width * 2 ** min(stage, 3)
            # Copies of the last stage keep the number of channels, so their first unit projects no shortcut.
            project = block == 0 and stage < 4
            x = block_class(self.layers, features, unit, project_shortcut=project, name=name)(x)
            endpoints[f"stage{stage + 1}"] = x
        if self.final_norm:
            x = nn.relu(self.layers.norm(name="final_norm")(x))
        taps = {"low_level_features": endpoints["stage1"], "mid_level_features": endpoints["stage2"]}
        return endpoints | taps | {"features": x}

    def _is_strided(self, stage: int, block: int) -> bool:
        strided = self.blocks[min(stage, 3)] - 1 if self.strided_unit == "last" else 0
        return stage > 0 and block == strided
