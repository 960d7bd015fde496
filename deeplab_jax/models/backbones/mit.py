"""Mix Transformer, the encoder of SegFormer (arXiv 2105.15203, section 3.1; NVlabs/SegFormer, `mix_transformer.py`).

It has no positional encoding: the zero padding of its convolutions tells positions. So it takes images of any height
and width of at least 32 pixels.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deeplab_jax.errors import UserError
from deeplab_jax.models.layers import Layers
from deeplab_jax.ops.precision import accumulator

_MINIMUM_SIDE = 32  # below, attention reduces the rows or columns of a stage to none
_MLP_RATIO = 4


class EfficientSelfAttention(nn.Module):
    """Multi-head attention of all pixels to a grid that is `reduction` times coarser (section 3.1, equation 2).

    Attributes:
      layers: the layer constructors.
      heads: number of heads; each has an equal share of the channels.
      reduction: kernel size and stride of the convolution from which keys and values are computed; 1 for none.
      epsilon: epsilon of the LayerNorm after this convolution.
    """

    layers: Layers
    heads: int
    reduction: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Returns features at the size of `x`."""
        dense, channels = self.layers.dense, x.shape[-1]
        query = self._split(dense(channels, name="query")(x))
        reduced = x
        if self.reduction > 1:
            # Without padding: rows and columns beyond a multiple of the stride are dropped.
            reduced = self.layers.conv(
                channels,
                kernel_size=self.reduction,
                stride=self.reduction,
                use_bias=True,
                padding="valid",
                name="reduction_conv",
            )(x)
            reduced = self.layers.layer_norm(self.epsilon, name="reduction_norm")(reduced)
        key = self._split(dense(channels, name="key")(reduced))
        value = self._split(dense(channels, name="value")(reduced))
        attended = attend(query, key, value).reshape(x.shape)
        return dense(channels, name="projection")(attended)

    @nn.nowrap
    def _split(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        return x.reshape(batch, height * width, self.heads, channels // self.heads)


def attend(
    query: Float[Array, "batch queries heads channels"],
    key: Float[Array, "batch keys heads channels"],
    value: Float[Array, "batch keys heads channels"],
) -> Float[Array, "batch queries heads channels"]:
    """Computes softmax(query key^T / sqrt(channels)) value for each head, with the softmax in float32 or wider."""
    wide = accumulator(query.dtype)
    logits = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=wide)
    weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, value)


class MixFFN(nn.Module):
    """A linear layer, a depthwise 3x3 convolution, GELU and a linear layer (section 3.1, equation 3).

    Attributes:
      layers: the layer constructors.
      gelu: `exact` or `tanh`.
    """

    layers: Layers
    gelu: str

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Returns features at the size of `x`."""
        channels = x.shape[-1]
        x = self.layers.dense(_MLP_RATIO * channels, name="expand")(x)
        x = self.layers.depthwise_conv(kernel_size=3, use_bias=True, name="depthwise_conv")(x)
        x = jax.nn.gelu(x, approximate=self.gelu == "tanh")
        return self.layers.dense(channels, name="project")(x)


class MixTransformerBlock(nn.Module):
    """Attention and Mix-FFN, each after a LayerNorm and with a shortcut, which drop path can leave alone.

    Attributes:
      layers: the layer constructors.
      heads: see `EfficientSelfAttention`.
      reduction: see `EfficientSelfAttention`.
      drop_path: the probability with which an example skips a residual branch in training (arXiv 1603.09382).
      epsilons: see `MixTransformer`.
      gelu: see `MixFFN`.
    """

    layers: Layers
    heads: int
    reduction: int
    drop_path: float
    epsilons: Sequence[float]
    gelu: str

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Returns features of the shape of `x`."""
        norm, epsilon = self.layers.layer_norm, self.epsilons[0]
        attention = EfficientSelfAttention(self.layers, self.heads, self.reduction, self.epsilons[3], name="attention")
        x = self.layers.add(x, self._drop_path("drop_path1")(attention(norm(epsilon, name="norm1")(x))))
        mlp = MixFFN(self.layers, self.gelu, name="mlp")
        return self.layers.add(x, self._drop_path("drop_path2")(mlp(norm(epsilon, name="norm2")(x))))

    @nn.nowrap
    def _drop_path(self, name: str) -> nn.Dropout:
        """Creates dropout of whole examples, which scales the others by 1 / (1 - drop_path)."""
        return nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not self.layers.train, name=name)


class MixTransformer(nn.Module):
    """Mix Transformer: four stages of an overlapping patch embedding, blocks and a LayerNorm, at strides 4 to 32.

    Attributes:
      layers: the layer constructors.
      channels: number of channels of each stage.
      blocks: number of blocks of each stage.
      heads: number of attention heads of each stage.
      reductions: factor by which each stage reduces keys and values along both axes.
      drop_path: rate of drop path in the last block; it rises linearly from 0 in the first.
      layer_norm_epsilons: epsilons of LayerNorm in blocks, after stages, after patch embeddings, and in reduced
        attention. Implementations differ in them.
      gelu: `exact` or `tanh`.
      output_stride: 32. There is no atrous version.
      spread_converted: without effect; see `plan_units`.
    """

    layers: Layers
    channels: Sequence[int]
    blocks: Sequence[int]
    heads: Sequence[int] = (1, 2, 5, 8)
    reductions: Sequence[int] = (8, 4, 2, 1)
    drop_path: float = 0.0
    layer_norm_epsilons: Sequence[float] = (1e-6, 1e-6, 1e-5, 1e-5)
    gelu: str = "exact"
    output_stride: int = 32
    spread_converted: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> dict[str, Float[Array, "batch _ _ _"]]:
        _check_size(x.shape[1:3])
        rates = drop_path_rates(self.drop_path, self.blocks)
        _, stage_epsilon, embedding_epsilon, _ = self.layer_norm_epsilons
        block_class = self.layers.unit(MixTransformerBlock)
        endpoints = {}
        for stage in range(4):
            name = f"stage{stage + 1}"
            window, stride = (7, 4) if stage == 0 else (3, 2)
            x = self.layers.conv(
                self.channels[stage], kernel_size=window, stride=stride, use_bias=True, name=f"{name}_embedding_conv"
            )(x)
            x = self.layers.layer_norm(embedding_epsilon, name=f"{name}_embedding_norm")(x)
            for block, rate in enumerate(rates[stage]):
                x = block_class(
                    self.layers,
                    self.heads[stage],
                    self.reductions[stage],
                    rate,
                    tuple(self.layer_norm_epsilons),
                    self.gelu,
                    name=f"{name}_block{block + 1}",
                )(x)
            x = endpoints[name] = self.layers.layer_norm(stage_epsilon, name=f"{name}_norm")(x)
        taps = {"low_level_features": endpoints["stage1"], "mid_level_features": endpoints["stage2"]}
        return endpoints | taps | {"features": x}


def drop_path_rates(last: float, blocks: Sequence[int]) -> list[list[float]]:
    """Returns the rate of each block of each stage: linear in the number of the block, from 0 to `last`."""
    rates = iter(np.linspace(0, last, sum(blocks)).tolist())
    return [[next(rates) for _ in range(count)] for count in blocks]


def _check_size(size: Sequence[Any]) -> None:
    if any(isinstance(side, int) and side < _MINIMUM_SIDE for side in size):
        raise UserError(
            f"the backbone needs images of at least {_MINIMUM_SIDE}x{_MINIMUM_SIDE} pixels, not {size[0]}x{size[1]}; "
            "pad or enlarge them"
        )
