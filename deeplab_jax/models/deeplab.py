"""DeepLabv3 (arXiv 1706.05587) and DeepLabv3+ (arXiv 1802.02611)."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from deeplab_jax.models.aspp import ASPP
from deeplab_jax.models.atrous import scale_rates
from deeplab_jax.models.backbones import BACKBONES, OPTIONS
from deeplab_jax.models.decoder import Decoder
from deeplab_jax.models.layers import CLASSIFIER_INITS, Layers
from deeplab_jax.ops import XLA, Operations
from deeplab_jax.ops.precision import accumulator

#: The top-level parts of the parameters. Learning-rate multipliers and freezing refer to them.
PARTS = ("backbone", "aspp", "decoder", "classifier")


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+: backbone, ASPP, decoder, classifier. With `decoder="none"` it is DeepLabv3.

    Attributes without a default are the fields of `config.model`, whose defaults and meanings stand in
    `deeplab_jax.config.FIELDS`. Build the module with `build_model`.

    Attributes:
      num_classes: number of output channels of the classifier.
      dtype: the compute dtype of the convolutions; parameters, statistics and logits are float32.
      ops: the operations that the network calls, see `deeplab_jax.ops`.
      remat: what training recomputes for the gradient instead of keeping it: `none`, `activations` (BatchNorm and
        ReLU after convolutions) or `units` (everything inside residual units and convolution blocks).
      published_order: compute in the order of the publications: enlarge, then project or classify. The default order
        projects and classifies first, which is the same function at a fraction of the cost, since both are linear and
        bilinear weights add up to one. For tests and for counting published multiply-adds.
    """

    num_classes: int
    backbone: str
    in_channels: int
    width_multiplier: float
    output_stride: int
    multi_grid: Sequence[int]
    spread_converted_units: bool
    atrous_rates: Sequence[int]
    atrous_rates_stride: int
    aspp_channels: int
    aspp_separable: bool
    image_pooling: bool
    separable_norm: bool
    aspp_dropout: float
    decoder: str
    decoder_channels: int
    low_level_channels: int
    classifier_bias: bool
    kernel_init: str
    backbone_norm_epsilon: float
    backbone_norm_decay: float
    head_norm_epsilon: float
    head_norm_decay: float
    freeze_norm_statistics: bool
    zero_unreached_taps: bool
    padding: str
    align_corners: bool
    input_mean: Sequence[float]
    input_std: Sequence[float]
    dtype: DTypeLike = jnp.float32
    ops: Operations = XLA
    remat: str = "none"
    published_order: bool = False

    @nn.compact
    def __call__(
        self,
        images: UInt8[Array | np.ndarray, "batch height width channels"]
        | Float[Array | np.ndarray, "batch height width channels"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "batch height width classes"], dict[str, Float[Array, "batch _ _ _"]]]:
        """Classifies every pixel.

        Args:
          images: images of any height and width, with values in 0-255.
          train: True switches dropout on and makes BatchNorm use and update batch statistics. Pass
            `mutable=["batch_stats"]`, and an rng named "dropout" if a dropout rate is not 0.

        Returns:
          float32 logits at the size of the images, and a dict of endpoints: the backbone's stages, `features`,
          `low_level_features`, `aspp`, `decoder` (unless it is "none") and `logits` at the resolution of the
          classifier.
        """
        resize = functools.partial(self.ops.resize_bilinear, align_corners=self.align_corners)
        size = images.shape[1:3]
        x = self._normalize(images)

        backbone = BACKBONES[self.backbone].create(
            layers=self._layers(train, self.backbone_norm_epsilon, self.backbone_norm_decay),
            output_stride=self.output_stride,
            spread_converted=self.spread_converted_units,
            **self._backbone_options(),
            name="backbone",
        )
        endpoints = backbone(x)

        head = self._layers(train, self.head_norm_epsilon, self.head_norm_decay)
        x = endpoints["aspp"] = ASPP(
            layers=head,
            channels=self.aspp_channels,
            rates=scale_rates(self.atrous_rates, self.atrous_rates_stride, self.output_stride),
            separable=self.aspp_separable,
            image_pooling=self.image_pooling,
            dropout=self.aspp_dropout,
            deterministic=not train,
            published_order=self.published_order,
            name="aspp",
        )(endpoints["features"])
        if self.decoder != "none":
            x = endpoints["decoder"] = Decoder(
                layers=head,
                style=self.decoder,
                channels=self.decoder_channels,
                low_level_channels=self.low_level_channels,
                resize=resize,
                published_order=self.published_order,
                name="decoder",
            )(x, endpoints["low_level_features"])

        logits_dtype = accumulator(x.dtype)
        if self.published_order and self.decoder == "kerascv":
            x = resize(x, size)
        classifier = head.conv(
            self.num_classes,
            use_bias=self.classifier_bias,
            kernel_init=CLASSIFIER_INITS[self.kernel_init],
            dtype=logits_dtype,
            name="classifier",
        )
        logits = endpoints["logits"] = classifier(x)
        return resize(logits, size), endpoints

    def _normalize(self, images):
        dtype = accumulator(images.dtype) if images.dtype != jnp.uint8 else jnp.float32
        mean = jnp.asarray(self.input_mean, dtype).reshape(1, 1, 1, -1)
        std = jnp.asarray(self.input_std, dtype).reshape(1, 1, 1, -1)
        return ((images.astype(dtype) - mean) / std).astype(self.dtype)

    def _backbone_options(self) -> dict[str, Any]:
        values = {"multi_grid": tuple(self.multi_grid), "width_multiplier": self.width_multiplier}
        return {name: value for name, value in values.items() if value != OPTIONS[name]}

    def _layers(self, train: bool, norm_epsilon: float, norm_decay: float) -> Layers:
        return Layers(
            padding=self.padding,
            kernel_init=self.kernel_init,
            norm_epsilon=norm_epsilon,
            norm_decay=norm_decay,
            use_running_average=not train or self.freeze_norm_statistics,
            dtype=self.dtype,
            ops=self.ops,
            separable_norm=self.separable_norm,
            remat=self.remat if train else "none",
        )
