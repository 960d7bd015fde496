"""The decoder of DeepLabv3+ (arXiv 1802.02611, section 3.1), which refines encoder output with low-level features."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from deeplab_jax.models.layers import ConvNormAct, Layers


class Decoder(nn.Module):
    """Joins the enlarged encoder output with low-level features, projected to few channels, and refines both.

    The styles `paper` and `separable` take features of several strides. As in the last row of table 2, the output is
    enlarged to the size of the coarsest, joined with it and refined, then the same with the next.

    Attributes:
      layers: the layer constructors.
      style: `paper`: 3x3 convolutions (two in table 2's best row); `separable`: the same, depthwise separable;
        `kerascv`: one 1x1 convolution (keras_cv 0.9, `segmentation_head`); `smp`: one separable 3x3 convolution of
        the encoder output before it is enlarged and one after the join (segmentation_models.pytorch 0.6,
        `DeepLabV3PlusDecoder`); `torchvision`: one 3x3 convolution of the encoder output and no low-level features
        (torchvision, `DeepLabHead`).
      channels: number of output channels of the refinement.
      convs: number of 3x3 convolutions after each join, for the styles `paper` and `separable`.
      low_level_channels: number of channels of the low-level projection (best in table 1: 48).
      separable_norm: see `ConvNormAct`.
      resize: `resize(x, (height, width))`, bilinear.
      published_order: enlarge the encoder output before the `kerascv` 1x1 convolution, as KerasCV does. The default
        enlarges its projection, which is the same function.
    """

    layers: Layers
    style: str
    channels: int
    convs: int
    low_level_channels: int
    separable_norm: bool
    resize: object
    published_order: bool = False

    @nn.compact
    def __call__(
        self,
        encoder_output: Float[Array, "batch _ _ features"],
        low_level_features: Sequence[Float[Array, "batch _ _ _"]],
    ) -> Float[Array, "batch _ _ channels"]:
        """Refines the encoder output.

        Args:
          encoder_output: the result of ASPP.
          low_level_features: one feature map or, for the styles `paper` and `separable`, one or two, the coarser first.

        Returns:
          Features at the size of the last low-level features, or of `encoder_output` for the style `torchvision`.
        """
        if self.style == "torchvision":
            x = self._refine(encoder_output, "refine1")
        elif self.style == "smp":
            x = self._refine(encoder_output, "encoder_refine")
            x = self._refine(self._join(x, low_level_features[0], "low_level"), "refine1")
        elif self.style == "kerascv":
            x = self._project_and_join(encoder_output, low_level_features[0])
        else:
            x = encoder_output
            levels = (("mid_level", "mid_refine"), ("low_level", "refine"))[-len(low_level_features) :]
            for (name, refine), features in zip(levels, low_level_features, strict=True):
                x = self._join(x, features, name)
                for i in range(1, self.convs + 1):
                    x = self._refine(x, f"{refine}{i}")
        return x

    # `nowrap`: these methods add no scope to the paths that `summary` counts by.
    @nn.nowrap
    def _project(self, x: Array, name: str) -> Array:
        return self.layers.unit(ConvNormAct)(self.layers, self.low_level_channels, name=name)(x)

    @nn.nowrap
    def _join(self, x: Array, low_level_features: Array, name: str) -> Array:
        low_level = self._project(low_level_features, name)
        return jnp.concatenate([self.resize(x, low_level.shape[1:3]), low_level], axis=-1)

    @nn.nowrap
    def _project_and_join(self, encoder_output: Array, low_level_features: Array) -> Array:
        """Computes the 1x1 convolution of the join before the encoder output is enlarged."""
        size: Sequence[Any] = low_level_features.shape[1:3]
        branches = [encoder_output, self._project(low_level_features, "low_level")]  # KerasCV's order
        if self.published_order:
            branches = [jnp.concatenate([self.resize(branch, size) for branch in branches], axis=-1)]
        x = self.layers.concat_conv(self.channels, name="refine1_conv")(branches, size, self.resize)
        return nn.relu(self.layers.norm(name="refine1_norm")(x))

    @nn.nowrap
    def _refine(self, x: Array, name: str) -> Array:
        separable = self.style in ("separable", "smp")
        refine = self.layers.unit(ConvNormAct)
        return refine(
            self.layers,
            self.channels,
            kernel_size=3,
            separable=separable,
            separable_norm=self.separable_norm,
            name=name,
        )(x)
