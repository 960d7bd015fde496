"""DeepLabv3 (arXiv 1706.05587) and DeepLabv3+ (arXiv 1802.02611)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from deeplab_jax.errors import UserError
from deeplab_jax.models.aspp import ASPP
from deeplab_jax.models.atrous import scale_rates
from deeplab_jax.models.decoder import Decoder
from deeplab_jax.models.dense_prediction_cell import DensePredictionCell, cell_rates
from deeplab_jax.models.layers import Layers
from deeplab_jax.models.network import Endpoints, SegmentationNetwork

#: Endpoints of backbones that the decoder takes, by their stride.
LOW_LEVEL_ENDPOINTS = {4: "low_level_features", 8: "mid_level_features"}


class DeepLabV3Plus(SegmentationNetwork, kw_only=True):
    """DeepLabv3+: backbone, ASPP, decoder, classifier. With `decoder="none"` it is DeepLabv3.

    With `aspp="none"` as well, the classifier takes the backbone's features, as in the cascaded modules of DeepLabv3
    (section 3.2).

    Its endpoints are those of `SegmentationNetwork`, and the outputs `aspp` and `decoder` of these parts if the network
    has them.
    """

    aspp: str
    atrous_rates: Sequence[int]
    atrous_rates_stride: int
    aspp_channels: int
    aspp_projection_size: int
    aspp_separable: bool
    image_pooling: bool
    image_pooling_window: Sequence[int]
    image_pooling_stride: Sequence[int]
    separable_norm: bool
    aspp_dropout: float
    decoder: str
    decoder_channels: int
    decoder_convs: int
    low_level_channels: int
    low_level_strides: Sequence[int]

    @nn.nowrap
    def decode(
        self, endpoints: Endpoints, layers: Layers, *, size: Sequence[Any], train: bool
    ) -> Float[Array, "batch _ _ features"]:
        """Runs ASPP and the decoder.

        Raises:
          UserError: the backbone lacks features at one of `low_level_strides`.
        """
        x = endpoints["features"]
        if self.aspp != "none":
            encode = self._cell(layers, train=train) if self.aspp == "dpc" else self._aspp(layers, train=train)
            x = endpoints["aspp"] = encode(x)
        if self.decoder != "none":
            x = endpoints["decoder"] = Decoder(
                layers=layers,
                style=self.decoder,
                channels=self.decoder_channels,
                convs=self.decoder_convs,
                low_level_channels=self.low_level_channels,
                separable_norm=self.separable_norm,
                resize=self.resize,
                published_order=self.published_order,
                name="decoder",
            )(x, self._low_level_features(endpoints))
        return self.resize(x, size) if self.published_order and self.decoder == "kerascv" else x

    @nn.nowrap
    def _aspp(self, layers: Layers, *, train: bool) -> ASPP:
        return ASPP(
            layers=layers,
            channels=self.aspp_channels,
            projection_size=self.aspp_projection_size,
            rates=scale_rates(self.atrous_rates, self.atrous_rates_stride, self.output_stride),
            separable=self.aspp_separable,
            separable_norm=self.separable_norm,
            image_pooling=self.image_pooling,
            pooling_window=self.image_pooling_window,
            pooling_stride=self.image_pooling_stride,
            output_stride=self.output_stride,
            resize=self.resize,
            dropout=self.aspp_dropout,
            deterministic=not train,
            published_order=self.published_order,
            name="aspp",
        )

    @nn.nowrap
    def _cell(self, layers: Layers, *, train: bool) -> DensePredictionCell:
        return DensePredictionCell(
            layers=layers,
            channels=self.aspp_channels,
            rates=cell_rates(self.output_stride),
            dropout=self.aspp_dropout,
            deterministic=not train,
            published_order=self.published_order,
            name="aspp",
        )

    def _low_level_features(self, endpoints: Endpoints) -> list[Array]:
        """Returns the backbone's features for the decoder, the coarsest first."""
        names = [LOW_LEVEL_ENDPOINTS[stride] for stride in sorted(self.low_level_strides, reverse=True)]
        if missing := [name for name in names if name not in endpoints]:
            raise UserError(
                f"model.low_level_strides={tuple(self.low_level_strides)}: {self.backbone} has no {missing[0]}; "
                "use (4,), or another backbone"
            )
        return [endpoints[name] for name in names]
