"""Lite reduced atrous spatial pyramid pooling, LR-ASPP (arXiv 1905.02244, section 6.4 and figure 10)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from deeplab_jax.errors import UserError
from deeplab_jax.models.image_pooling import pool_image
from deeplab_jax.models.layers import ConvNormAct, Layers
from deeplab_jax.models.network import Endpoints, SegmentationNetwork

_GATES: Mapping[str, Callable[[Array], Array]] = {"sigmoid": nn.sigmoid, "hard_sigmoid": nn.hard_sigmoid}


class LRASPP(SegmentationNetwork, kw_only=True):
    """A gated projection of the features, and a skip connection from stride 8. Both are classified and added up.

    Its endpoints are those of `SegmentationNetwork` and `aspp`, the gated projection.
    """

    aspp_channels: int
    lraspp_gate: str
    image_pooling_window: Sequence[int]
    image_pooling_stride: Sequence[int]

    @nn.nowrap
    def decode(
        self, endpoints: Endpoints, layers: Layers, *, size: Sequence[Any], train: bool
    ) -> Float[Array, "batch _ _ features"]:
        """Returns the gated projection of the features."""
        if "mid_level_features" not in endpoints:
            raise UserError(f"model.head=lraspp needs features of stride 8, which {self.backbone} does not provide")
        x = endpoints["aspp"] = GatedProjection(
            layers=layers,
            channels=self.aspp_channels,
            gate=self.lraspp_gate,
            window=self.image_pooling_window,
            stride=self.image_pooling_stride,
            output_stride=self.output_stride,
            resize=self.resize,
            name="aspp",
        )(endpoints["features"])
        return self.resize(x, endpoints["mid_level_features"].shape[1:3]) if self.published_order else x

    @nn.nowrap
    def classify(
        self, x: Float[Array, "batch _ _ features"], endpoints: Endpoints, layers: Layers
    ) -> Float[Array, "batch _ _ classes"]:
        """Returns logits at stride 8."""
        return SumClassifier(
            layers=layers,
            num_classes=self.num_classes,
            use_bias=self.classifier_bias,
            resize=self.resize,
            name="classifier",
        )(x, endpoints["mid_level_features"])


class GatedProjection(nn.Module):
    """A 1x1 convolution with BatchNorm and ReLU, times a gate that depends on means of the features.

    Attributes:
      layers: the layer constructors.
      channels: number of output channels.
      gate: `sigmoid`, without a bias (torchvision), or `hard_sigmoid`, with one (research/deeplab).
      window: see `pool_image`.
      stride: see `pool_image`.
      output_stride: see `pool_image`.
      resize: `resize(x, (height, width))`, bilinear.
    """

    layers: Layers
    channels: int
    gate: str
    window: Sequence[int]
    stride: Sequence[int]
    output_stride: int
    resize: Callable[[Array, Sequence[Any]], Array]

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width features"]) -> Float[Array, "batch height width channels"]:
        """Returns features at the size of `x`."""
        means = pool_image(x, window=self.window, stride=self.stride, output_stride=self.output_stride)
        gate = self.layers.conv(self.channels, use_bias=self.gate == "hard_sigmoid", name="gate_conv")(means)
        gate = _GATES[self.gate](gate)
        projected = self.layers.unit(ConvNormAct)(self.layers, self.channels, name="projection")(x)
        return projected * (self.resize(gate, x.shape[1:3]) if self.window else gate)


class SumClassifier(nn.Module):
    """The sum of two 1x1 convolutions to logits, of features at different strides.

    The logits of the coarse features are enlarged, which is the same as to classify enlarged features: bilinear weights
    add up to one.

    Attributes:
      layers: the layer constructors.
      num_classes: number of output channels.
      use_bias: whether both convolutions have a bias.
      resize: `resize(x, (height, width))`, bilinear.
    """

    layers: Layers
    num_classes: int
    use_bias: bool
    resize: Callable[[Array, Sequence[Any]], Array]

    @nn.compact
    def __call__(
        self, coarse: Float[Array, "batch _ _ features"], fine: Float[Array, "batch height width low"]
    ) -> Float[Array, "batch height width classes"]:
        """Returns logits at the size of `fine`."""
        logits = self.layers.classifier(self.num_classes, use_bias=self.use_bias, name="features")(coarse)
        skip = self.layers.classifier(self.num_classes, use_bias=self.use_bias, name="mid_level")(fine)
        return self.resize(logits, fine.shape[1:3]) + skip
