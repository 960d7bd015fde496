"""The dense prediction cell that architecture search found on Cityscapes (arXiv 1809.04184), in the place of ASPP.

Facts about the original, from tensorflow/models, `research/deeplab/core/dense_prediction_cell.py`: every branch is a
depthwise separable 3x3 convolution with BatchNorm and ReLU after both of its convolutions; rates are stated for stride
16 and scale with the output stride; dropout precedes the projection of the concatenated branches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from deeplab_jax.models.atrous import scale_rates
from deeplab_jax.models.layers import ConvNormAct, Layers


class Branch(NamedTuple):
    """A convolution of the cell: its rates (height, width), and the branch that it reads, or None for the features."""

    rate: tuple[int, int]
    source: int | None


#: The best cell of the search: `core/dense_prediction_cell_branch5_top1_cityscapes.json`.
BRANCHES = (Branch((1, 6), None), Branch((18, 15), 0), Branch((6, 3), 1), Branch((1, 1), 0), Branch((6, 21), 0))
#: The output stride that the rates are stated for, the largest at which they are whole numbers.
STATED_STRIDE = 16


def cell_rates(output_stride: int) -> tuple[tuple[int, int], ...]:
    """Returns the rates (height, width) of each branch at an output stride of at most `STATED_STRIDE`."""
    return tuple(scale_rates(branch.rate, STATED_STRIDE, output_stride) for branch in BRANCHES)


class DensePredictionCell(nn.Module):
    """The cell of `BRANCHES`. Branches are concatenated in their order.

    Attributes:
      layers: the layer constructors.
      channels: number of output channels of each branch and of the projection.
      rates: rates (height, width) of each branch, in pixels of the feature map.
      dropout: the dropout rate of the concatenated branches in training.
      deterministic: True switches dropout off.
      published_order: concatenate, then project, as in the original. The default adds up projections of the branches,
        which is the same function.
    """

    layers: Layers
    channels: int
    rates: Sequence[tuple[int, int]]
    dropout: float
    deterministic: bool
    published_order: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width features"]) -> Float[Array, "batch height width channels"]:
        """Returns features at the size of `x`."""
        convolution = self.layers.unit(ConvNormAct)
        outputs = []
        for i, (branch, rate) in enumerate(zip(BRANCHES, self.rates, strict=True)):
            source = x if branch.source is None else outputs[branch.source]
            block = convolution(
                self.layers, self.channels, kernel_size=3, rate=rate, separable=True, name=f"branch{i + 1}"
            )
            outputs.append(block(source))
        drop = nn.Dropout(self.dropout, deterministic=self.deterministic, name="dropout")
        outputs = [drop(output) for output in outputs]
        if self.published_order:
            outputs = [jnp.concatenate(outputs, axis=-1)]
        x = self.layers.concat_conv(self.channels, name="projection")(outputs, x.shape[1:3], lambda x, size: x)
        return nn.relu(self.layers.norm(name="projection_norm")(x))
