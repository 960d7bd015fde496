"""The base of all networks: normalization, backbone, classifier, auxiliary head, logits at the size of the images."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8, UInt16

from deeplab_jax.errors import UserError, suggest
from deeplab_jax.models.auxiliary import AuxiliaryHead
from deeplab_jax.models.backbones import BACKBONES, OPTIONS
from deeplab_jax.models.layers import Layers
from deeplab_jax.ops import XLA, Operations
from deeplab_jax.ops.precision import accumulator

#: The top-level parts of the parameters. Learning-rate multipliers and freezing refer to them. No network has all.
PARTS = ("backbone", "aspp", "decoder", "classifier", "auxiliary")

Endpoints = dict[str, Float[Array, "batch _ _ _"]]


class SegmentationNetwork(nn.Module, kw_only=True):
    """A backbone, a head and a classifier. Subclasses implement the head in `decode`.

    Attributes without a default are fields of `config.model`, whose defaults and meanings stand in
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
    output_stride: int
    width_multiplier: float
    multi_grid: Sequence[int]
    spread_converted_units: bool
    cascade_blocks: int
    drop_path: float
    layer_norm_epsilons: Sequence[float]
    gelu: str
    classifier_bias: bool
    classifier_dropout: float
    auxiliary_channels: int
    auxiliary_features: str
    auxiliary_dropout: float
    kernel_init: str
    backbone_norm_epsilon: float
    backbone_norm_decay: float
    head_norm_epsilon: float
    head_norm_decay: float
    freeze_norm_statistics: bool
    zero_unreached_taps: bool
    padding: str
    align_corners: bool
    value_range: Sequence[int | float]
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
        | UInt16[Array | np.ndarray, "batch height width channels"]
        | Float[Array | np.ndarray, "batch height width channels"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "batch height width classes"], Endpoints]:
        """Classifies every pixel.

        Args:
          images: images of any height and width, with values in 0-255, or in `value_range` if it is another.
          train: True switches dropout on, makes BatchNorm use and update batch statistics, and computes the auxiliary
            head. Pass `mutable=["batch_stats"]`, and an rng named "dropout" if a dropout rate is not 0.

        Returns:
          float32 logits at the size of the images, and a dict of endpoints: the backbone's stages, `features`,
          `low_level_features`, what the head adds, `logits` at the resolution of the classifier and, in training with
          an auxiliary head, `auxiliary_logits` at the resolution of its features.
        """
        size = images.shape[1:3]
        endpoints = self._run_backbone(self._normalize(images), train=train)
        head = self._layers(train, self.head_norm_epsilon, self.head_norm_decay)
        if self.auxiliary_channels and (train or self.is_initializing()):
            endpoints["auxiliary_logits"] = self._run_auxiliary_head(endpoints, head, train=train)
        x = self.decode(endpoints, head, size=size, train=train)
        x = nn.Dropout(self.classifier_dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
        logits = endpoints["logits"] = self.classify(x, endpoints, head)
        return self.resize(logits, size), endpoints

    @nn.nowrap
    def decode(
        self, endpoints: Endpoints, layers: Layers, *, size: Sequence[Any], train: bool
    ) -> Float[Array, "batch _ _ features"]:
        """Computes the input of the classifier. Called inside `__call__`, so it may create submodules.

        Args:
          endpoints: those of the backbone, to which this adds its own.
          layers: the layer constructors of the head.
          size: height and width of the images.
          train: whether dropout and batch statistics are those of training.
        """
        raise NotImplementedError

    @nn.nowrap
    def classify(
        self, x: Float[Array, "batch _ _ features"], endpoints: Endpoints, layers: Layers
    ) -> Float[Array, "batch _ _ classes"]:
        """Computes logits from the result of `decode`."""
        return layers.classifier(self.num_classes, use_bias=self.classifier_bias, name="classifier")(x)

    @property
    def resize(self) -> Callable[[Array, Sequence[Any]], Array]:
        """`resize(x, (height, width))`: bilinear, with the network's alignment of corners."""
        return functools.partial(self.ops.resize_bilinear, align_corners=self.align_corners)

    def _run_backbone(self, x: Array, *, train: bool) -> Endpoints:
        return BACKBONES[self.backbone].create(
            layers=self._layers(train, self.backbone_norm_epsilon, self.backbone_norm_decay),
            output_stride=self.output_stride,
            spread_converted=self.spread_converted_units,
            **self._backbone_options(),
            name="backbone",
        )(x)

    def _backbone_options(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in OPTIONS}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return {name: value for name, value in values.items() if value != OPTIONS[name]}

    def _run_auxiliary_head(self, endpoints: Endpoints, layers: Layers, *, train: bool) -> Array:
        if self.auxiliary_features not in endpoints:
            raise UserError(
                f"model.auxiliary_features={self.auxiliary_features!r} is not an endpoint of {self.backbone}"
                f"{suggest(self.auxiliary_features, endpoints)}"
            )
        return AuxiliaryHead(
            layers=layers,
            channels=self.auxiliary_channels,
            dropout=self.auxiliary_dropout,
            deterministic=not train,
            num_classes=self.num_classes,
            use_bias=self.classifier_bias,
            name="auxiliary",
        )(endpoints[self.auxiliary_features])

    def _normalize(self, images):
        is_integer = jnp.issubdtype(images.dtype, jnp.integer)
        dtype = jnp.float32 if is_integer else accumulator(images.dtype)
        # The mean and the standard deviation are stated for 0-255. They are scaled instead of the images.
        low, high = self.value_range
        scale = (high - low) / 255
        mean = jnp.asarray([low + value * scale for value in self.input_mean], dtype).reshape(1, 1, 1, -1)
        std = jnp.asarray([value * scale for value in self.input_std], dtype).reshape(1, 1, 1, -1)
        return ((images.astype(dtype) - mean) / std).astype(self.dtype)

    def _layers(self, train: bool, norm_epsilon: float, norm_decay: float) -> Layers:
        return Layers(
            padding=self.padding,
            kernel_init=self.kernel_init,
            norm_epsilon=norm_epsilon,
            norm_decay=norm_decay,
            use_running_average=not train or self.freeze_norm_statistics,
            dtype=self.dtype,
            ops=self.ops,
            train=train,
            remat=self.remat if train else "none",
        )
