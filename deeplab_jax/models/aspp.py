"""Atrous spatial pyramid pooling: parallel convolutions over the same features at several rates.

DeepLabv3 (arXiv 1706.05587), section 3.3: one 1x1 convolution, one 3x3 convolution per rate, and image-level features,
all with BatchNorm, concatenated and projected. A 3x3 convolution at rate r spans 2r + 1 pixels of the feature map, that
is (2r + 1) * output_stride pixels of the image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from deeplab_jax.models.image_pooling import pool_image
from deeplab_jax.models.layers import ConvNormAct, Layers


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling. Branches are concatenated in this order: 1x1, the rates as given, image pooling.

    Attributes:
      layers: the layer constructors.
      channels: number of output channels of each branch and of the projection.
      projection_size: kernel size of the projection: 1, or 3 as in MMSegmentation (`aspp_head.py`, `bottleneck`).
      rates: rates of the 3x3 branches, in pixels of the feature map.
      separable: whether the 3x3 branches are depthwise separable (DeepLabv3+, section 3.1).
      separable_norm: see `ConvNormAct`.
      image_pooling: whether there is a branch for the mean of the features.
      pooling_window: (height, width) of the windows of this branch in pixels of the image; empty for the whole image.
      pooling_stride: the strides of these windows, in pixels of the features.
      output_stride: pixels of the image per pixel of the features.
      resize: `resize(x, (height, width))`, bilinear, for the means of several windows.
      dropout: the dropout rate of the output in training.
      deterministic: True switches dropout off.
      published_order: concatenate at full size, then project, as in the paper. The default projects the pooled
        branch before it is enlarged, which is the same function.
    """

    layers: Layers
    channels: int
    projection_size: int
    rates: Sequence[int]
    separable: bool
    separable_norm: bool
    image_pooling: bool
    pooling_window: Sequence[int]
    pooling_stride: Sequence[int]
    output_stride: int
    resize: Callable[[Array, Sequence[Any]], Array]
    dropout: float
    deterministic: bool
    published_order: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width features"]) -> Float[Array, "batch height width channels"]:
        """Returns features at the size of `x`."""
        size = x.shape[1:3]
        branch = self.layers.unit(ConvNormAct)
        branches = [branch(self.layers, self.channels, name="branch_1x1")(x)]
        branches += [
            branch(
                self.layers,
                self.channels,
                kernel_size=3,
                rate=rate,
                separable=self.separable,
                separable_norm=self.separable_norm,
                name=f"branch_atrous{i + 1}",
            )(x)
            for i, rate in enumerate(self.rates)
        ]
        if self.image_pooling:
            means = pool_image(
                x, window=self.pooling_window, stride=self.pooling_stride, output_stride=self.output_stride
            )
            branches.append(branch(self.layers, self.channels, name="branch_pooling")(means))
        if self.projection_size > 1 or self.published_order:
            branches = [jnp.concatenate([self._enlarge(x, size) for x in branches], axis=-1)]
        if self.projection_size > 1:
            # Only a 1x1 convolution commutes with enlarging: at the border, a larger one sees zeros.
            x = self.layers.conv(self.channels, kernel_size=self.projection_size, name="projection")(branches[0])
        else:
            x = self.layers.concat_conv(self.channels, name="projection")(branches, size, self._enlarge)
        x = nn.relu(self.layers.norm(name="projection_norm")(x))
        return nn.Dropout(self.dropout, deterministic=self.deterministic, name="dropout")(x)

    @nn.nowrap
    def _enlarge(
        self, x: Float[Array, "batch _ _ channels"], size: Sequence[Any]
    ) -> Float[Array, "batch h w channels"]:
        if x.shape[1:3] == tuple(size):
            return x
        if x.shape[1:3] == (1, 1):
            return jnp.broadcast_to(x, (x.shape[0], *size, x.shape[-1]))
        return self.resize(x, size)
