"""SegFormer (arXiv 2105.15203): four stages of features, projected and added up, see NVlabs/SegFormer."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.models.layers import DENSE_INITS, KERNEL_INITS, Layers, LinearLayer
from deeplab_jax.models.network import Endpoints, SegmentationNetwork
from deeplab_jax.ops.precision import accumulator


class SegFormer(SegmentationNetwork, kw_only=True):
    """A backbone, SegFormer's all-MLP decoder and a classifier at the resolution of the first stage.

    Its endpoints are those of `SegmentationNetwork` and `decoder`. The backbone can be any whose `BackboneSpec.pyramid`
    names four stages. `align_corners` concerns the logits; the decoder always enlarges with half-pixel centers.
    """

    decoder_channels: int

    @nn.nowrap
    def decode(
        self, endpoints: Endpoints, layers: Layers, *, size: Sequence[Any], train: bool
    ) -> Float[Array, "batch _ _ features"]:
        """Runs the decoder on the stages of the backbone."""
        names = BACKBONES[self.backbone].pyramid
        if missing := [name for name in names if name not in endpoints]:
            raise UserError(
                f"model.head='segformer' needs four stages, but {self.backbone} has no endpoint {missing[0]!r}; choose "
                "another backbone or set BackboneSpec.pyramid"
            )
        x = endpoints["decoder"] = AllMLPDecoder(
            layers=layers,
            channels=self.decoder_channels,
            resize=self.ops.resize_bilinear,
            published_order=self.published_order,
            name="decoder",
        )([endpoints[name] for name in names])
        return x


class AllMLPDecoder(nn.Module):
    """Linear layers bring all stages to one width and size; a 1x1 convolution, BatchNorm and ReLU fuse them.

    Both steps are linear, and bilinear weights add up to one. So the product of each linear layer with its rows of the
    1x1 convolution projects a stage at its own resolution, and the results are enlarged and added up. At the published
    sizes this takes less than a tenth of the multiply-adds; the parameters are those of the publication.

    Attributes:
      layers: the layer constructors.
      channels: number of output channels.
      resize: `resize(x, (height, width))`, bilinear.
      published_order: project, enlarge, concatenate and convolve one after the other.
    """

    layers: Layers
    channels: int
    resize: Callable[[Array, Sequence[Any]], Array]
    published_order: bool = False

    @nn.compact
    def __call__(self, stages: Sequence[Float[Array, "batch _ _ _"]]) -> Float[Array, "batch height width channels"]:
        """Returns non-negative features at the size of the first stage."""
        layers, width = self.layers, self.channels
        linear_init = DENSE_INITS[layers.kernel_init]
        projections = [
            _Parameters((x.shape[-1], width), linear_init, name=f"projection{i}")() for i, x in enumerate(stages, 1)
        ]
        # The concatenation begins with the last stage.
        branches = list(zip(stages, projections, strict=True))[::-1]
        fuse = _Fuse(
            layers=layers, channels=width, resize=self.resize, published_order=self.published_order, name="fuse"
        )
        return nn.relu(layers.norm(name="norm")(fuse(branches, stages[0].shape[1:3])))


class _Fuse(LinearLayer):
    """The 1x1 convolution of all stages after their linear layers, whose products it computes."""

    layers: Layers
    channels: int
    resize: Callable[[Array, Sequence[Any]], Array]
    published_order: bool

    @nn.compact
    def __call__(
        self, branches: Sequence[tuple[Array, tuple[Array, Array]]], size: Sequence[Any]
    ) -> Float[Array, "batch height width channels"]:
        """Takes features with the kernel and bias of their linear layer. Returns the sum at `size`."""
        shape = (1, 1, len(branches) * self.channels, self.channels)
        kernel = self.param("kernel", KERNEL_INITS[self.layers.kernel_init], shape, jnp.float32)
        return (self._in_published_order if self.published_order else self._merged)(branches, kernel, size)

    @nn.nowrap
    def _merged(self, branches: Sequence[tuple[Array, tuple[Array, Array]]], fuse: Array, size: Sequence[Any]) -> Array:
        total, total_bias = None, 0.0
        for i, (x, (kernel, bias)) in enumerate(branches):
            rows = fuse[0, 0, i * self.channels : (i + 1) * self.channels]
            merged = jnp.dot(kernel[0, 0], rows, precision=lax.Precision.HIGHEST)
            total_bias += jnp.dot(bias, rows, precision=lax.Precision.HIGHEST)
            x = self.resize(self._convolve(x, merged[None, None]), size)
            total = x if total is None else total + x
        return self._add(total, total_bias)

    @nn.nowrap
    def _in_published_order(
        self, branches: Sequence[tuple[Array, tuple[Array, Array]]], fuse: Array, size: Sequence[Any]
    ) -> Array:
        enlarged = [self.resize(self._add(self._convolve(x, kernel), bias), size) for x, (kernel, bias) in branches]
        return self._convolve(jnp.concatenate(enlarged, axis=-1), fuse)

    @nn.nowrap
    def _convolve(self, x: Array, kernel: Array) -> Array:
        dtype = self.layers.dtype
        return self.layers.ops.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            (1, 1),
            ((0, 0), (0, 0)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    @nn.nowrap
    def _add(self, x: Array, bias: Array) -> Array:
        """Adds a bias in float32 or wider, so that its gradient is summed in it."""
        return (x.astype(accumulator(x.dtype)) + bias.reshape(1, 1, 1, -1)).astype(x.dtype)


class _Parameters(nn.Module):
    """The parameters of a 1x1 convolution, named as those of `deeplab_jax.models.layers.Conv`."""

    channels: tuple[int, int]
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "1 1 inputs features"], Float[Array, " features"]]:
        kernel = self.param("kernel", self.kernel_init, (1, 1, *self.channels), jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros_init(), self.channels[1:], jnp.float32)
