"""The auxiliary head: a shallower classifier whose loss helps the backbone train (arXiv 1612.01105, section 3.3)."""

import flax.linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.layers import ConvNormAct, Layers


class AuxiliaryHead(nn.Module):
    """One 3x3 convolution with BatchNorm and ReLU, dropout and a 1x1 convolution (`FCNHead` in torchvision and mmseg).

    Attributes:
      layers: the layer constructors.
      channels: number of output channels of the 3x3 convolution.
      dropout: dropout rate before the classifier.
      deterministic: True switches dropout off.
      num_classes: number of output channels of the last convolution.
      use_bias: whether the last convolution has a bias.
    """

    layers: Layers
    channels: int
    dropout: float
    deterministic: bool
    num_classes: int
    use_bias: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width features"]) -> Float[Array, "batch height width classes"]:
        """Returns logits at the size of `x`."""
        x = self.layers.unit(ConvNormAct)(self.layers, self.channels, kernel_size=3, name="refine")(x)
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=self.deterministic)(x)
        return self.layers.classifier(self.num_classes, use_bias=self.use_bias, name="classifier")(x)
