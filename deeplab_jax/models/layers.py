"""Convolution and normalization layers, and the options that bind them: padding, dtype, BatchNorm, operations.

The layers are thin versions of Flax's own, with the same parameters and initial values. `flax.linen.Conv` and
`flax.linen.BatchNorm` trace the initializer of every parameter in each call: tracing the forward pass of ResNet-50
takes 0.3 s with them and 0.15 s with these layers. Flax also sums the gradient of a bias in the compute dtype, and it
has no hook that replaces the normalization.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from deeplab_jax.ops import Operations, batch_norm, lax_padding
from deeplab_jax.ops.precision import accumulator

KERNEL_INITS = {
    "he_normal": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "glorot_uniform": nn.initializers.glorot_uniform(),
}
# For the linear layers of transformers. The original's truncation is at 100 standard deviations.
DENSE_INITS = {
    "he_normal": nn.initializers.normal(0.02),
    "glorot_uniform": nn.initializers.glorot_uniform(),
}
# For the last convolution, which no BatchNorm follows: research/deeplab starts with logits near zero, Keras does not.
CLASSIFIER_INITS = {
    "he_normal": nn.initializers.truncated_normal(0.01),
    "glorot_uniform": nn.initializers.glorot_uniform(),
}

_CONVOLUTION = "convolution"  # the name by which rematerialization finds the outputs of convolutions
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class LinearLayer(nn.Module):
    """A layer whose output is linear in its parameters; their last axis is its channels, see `fold_batch_norm`."""


class Conv(LinearLayer):
    """A convolution over NHWC images. Parameters are float32; the result has the compute dtype.

    Attributes:
      features: number of output channels.
      kernel_size: height and width of the kernel.
      stride: the stride along both axes.
      rate: the atrous rate: the distance between taps in pixels, along both axes or along each.
      groups: number of groups of channels that are convolved independently (ResNeXt).
      use_bias: whether to add a bias.
      padding: one of `deeplab_jax.ops.PADDINGS`.
      kernel_init: the initializer of the kernel.
      dtype: the compute dtype.
      conv_general_dilated: a replacement for `jax.lax.conv_general_dilated`.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    rate: int | tuple[int, int] = 1
    groups: int = 1
    use_bias: bool = False
    padding: str = "symmetric"
    kernel_init: nn.initializers.Initializer = KERNEL_INITS["he_normal"]
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Callable = lax.conv_general_dilated

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch out_h out_w features"]:
        """Returns ceil(size / stride) pixels per axis."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        x = _convolve(self, x, _parameter(self, "kernel", self.kernel_init, shape), self.groups)
        return checkpoint_name(_add_bias(self, x) if self.use_bias else x, _CONVOLUTION)


class DepthwiseConv(LinearLayer):
    """A convolution with one kernel per channel.

    Attributes:
      kernel_size: height and width of the kernel.
      stride: the stride along both axes.
      rate: the atrous rate: the distance between taps in pixels, along both axes or along each.
      use_bias: whether to add a bias.
      padding: one of `deeplab_jax.ops.PADDINGS`.
      dtype: the compute dtype.
      conv_general_dilated: a replacement for `jax.lax.conv_general_dilated`.
    """

    kernel_size: int = 3
    stride: int = 1
    rate: int | tuple[int, int] = 1
    use_bias: bool = False
    padding: str = "symmetric"
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Callable = lax.conv_general_dilated

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch out_h out_w channels"]:
        """Returns ceil(size / stride) pixels per axis."""
        # The kernel of a grouped convolution in HWIO has one input channel. Its fan-out would count the outputs of all
        # groups, so the variance is set by the fan-in of the window.
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(0, 1, 2), out_axis=3)
        kernel = _parameter(self, "kernel", init, (self.kernel_size, self.kernel_size, 1, x.shape[-1]))
        x = _convolve(self, x, kernel, x.shape[-1])
        return checkpoint_name(_add_bias(self, x) if self.use_bias else x, _CONVOLUTION)


def _convolve(module: Conv | DepthwiseConv, x: Array, kernel: Array, groups: int) -> Array:
    return module.conv_general_dilated(
        x.astype(module.dtype),
        kernel.astype(module.dtype),
        (module.stride, module.stride),
        lax_padding(module.padding, kernel.shape[:2], rate=module.rate),
        rhs_dilation=(module.rate,) * 2 if isinstance(module.rate, int) else module.rate,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


def _add_bias(module: nn.Module, x: Array) -> Array:
    # The gradient of the bias is a sum over all pixels, in float32 even if they are bfloat16.
    bias = _parameter(module, "bias", nn.initializers.zeros_init(), x.shape[-1:])
    return (x.astype(accumulator(x.dtype)) + bias.reshape(1, 1, 1, -1)).astype(x.dtype)


class ConcatConv(LinearLayer):
    """A 1x1 convolution of a concatenation, computed as a sum of one projection per branch.

    A 1x1 convolution commutes with broadcasting and with bilinear resizing, whose weights add up to one. So each branch
    is projected at its own resolution by its rows of the common kernel, and enlarged afterwards. The kernel has the
    shape of the convolution after the concatenation in the published model.

    Attributes:
      features: number of output channels.
      kernel_init: a key of `KERNEL_INITS`.
      dtype: the compute dtype.
      conv_general_dilated: a replacement for `jax.lax.conv_general_dilated`.
    """

    features: int
    kernel_init: str = "he_normal"
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Callable = lax.conv_general_dilated

    @nn.compact
    def __call__(
        self, branches: Sequence[Float[Array, "batch _ _ _"]], size: Sequence[Any], resize
    ) -> Float[Array, "batch height width features"]:
        """Projects the branches, resizes each to `size` with `resize(x, size)`, and adds them up."""
        channels = [branch.shape[-1] for branch in branches]
        shape = (1, 1, sum(channels), self.features)
        kernel = _parameter(self, "kernel", KERNEL_INITS[self.kernel_init], shape).astype(self.dtype)
        total, first = None, 0
        for branch, count in zip(branches, channels, strict=True):
            rows = kernel[:, :, first : first + count]
            projected = self.conv_general_dilated(
                branch.astype(self.dtype), rows, (1, 1), ((0, 0), (0, 0)), dimension_numbers=_DIMENSIONS
            )
            projected = resize(projected, size)
            total = projected if total is None else total + projected
            first += count
        return total


class BatchNorm(nn.Module):
    """Batch normalization over NHWC images (arXiv 1502.03167) with float32 parameters and statistics, named as in Flax.

    It normalizes by batch statistics and updates the running ones, running = decay * running + (1 - decay) * batch.
    With `use_running_average` it normalizes by the running ones. Under `jax.jit` over a mesh, the batch is the global
    batch.

    `fold_batch_norm` replaces its variables by a `shift` to add and, if no kernel takes it, a `factor` before it.

    Attributes:
      use_running_average: whether to normalize by the running statistics.
      decay: the decay of the running statistics, Flax's `momentum`.
      epsilon: added to the variance.
      dtype: the compute dtype.
      batch_norm: a replacement for `deeplab_jax.ops.batch_norm`.
    """

    use_running_average: bool
    decay: float
    epsilon: float
    dtype: DTypeLike = jnp.float32
    batch_norm: Callable = batch_norm

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Returns the normalized features in the compute dtype."""
        if self.use_running_average and self.has_variable("params", "shift"):
            return self._folded(x.astype(self.dtype))
        channels = x.shape[-1:]
        scale = _parameter(self, "scale", nn.initializers.ones_init(), channels)
        bias = _parameter(self, "bias", nn.initializers.zeros_init(), channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x = x.astype(self.dtype)
        if self.use_running_average:
            factor = lax.rsqrt(variance.value + self.epsilon) * scale
            x = (x - mean.value.reshape(1, 1, 1, -1)) * factor.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)
            return x.astype(self.dtype)
        x, batch_mean, batch_variance = self.batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            mean.value = self.decay * mean.value + (1 - self.decay) * batch_mean
            variance.value = self.decay * variance.value + (1 - self.decay) * batch_variance
        return x

    @nn.nowrap
    def _folded(self, x: Array) -> Array:
        if self.has_variable("params", "factor"):
            x = x * self.get_variable("params", "factor").reshape(1, 1, 1, -1)
        return (x + self.get_variable("params", "shift").reshape(1, 1, 1, -1)).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalization over the channels of each pixel (arXiv 1607.06450), computed in float32 or wider.

    Attributes:
      epsilon: added to the variance.
      dtype: the dtype of the result.
    """

    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Returns the normalized features in the compute dtype."""
        channels = x.shape[-1:]
        scale = _parameter(self, "scale", nn.initializers.ones_init(), channels).reshape(1, 1, 1, -1)
        bias = _parameter(self, "bias", nn.initializers.zeros_init(), channels).reshape(1, 1, 1, -1)
        x = x.astype(accumulator(x.dtype))
        # The second pass over the channels costs little; a variance from the mean of squares would cancel digits.
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


def _parameter(module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]) -> Array:
    """Returns a float32 parameter, as `module.param` does, but checks an existing one without tracing `init`.

    Raises:
      flax.errors.ScopeParamShapeError: the parameter exists and has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, jnp.float32)
    value = module.get_variable("params", name)
    if value.shape != shape:
        raise flax.errors.ScopeParamShapeError(name, module.scope.path_text, value.shape, shape)
    return value


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layer constructors of one part of the network, with its options bound.

    Attributes:
      padding: one of `deeplab_jax.ops.PADDINGS`.
      kernel_init: a key of `KERNEL_INITS`.
      norm_epsilon: added to the variance by BatchNorm.
      norm_decay: the decay of BatchNorm's running statistics.
      use_running_average: whether BatchNorm normalizes by the running statistics.
      dtype: the compute dtype.
      ops: the operations that the layers call.
      train: whether the part is computed for training.
      remat: what the gradient keeps. `none` keeps everything; `activations` keeps the outputs of convolutions and
        recomputes the rest, which is cheap; `units` keeps the inputs of units and recomputes their convolutions too.
    """

    padding: str
    kernel_init: str
    norm_epsilon: float
    norm_decay: float
    use_running_average: bool
    dtype: DTypeLike
    ops: Operations
    train: bool = False
    remat: str = "none"

    def unit(self, module: type[nn.Module]) -> type[nn.Module]:
        """Returns the module class, rematerialized as `remat` says."""
        if self.remat == "activations":
            return nn.remat(module, policy=jax.checkpoint_policies.save_only_these_names(_CONVOLUTION))
        return nn.remat(module) if self.remat == "units" else module

    @property
    def conv(self):
        """`Conv` with padding, initializer, dtype and operation bound."""
        return functools.partial(
            Conv,
            padding=self.padding,
            kernel_init=KERNEL_INITS[self.kernel_init],
            dtype=self.dtype,
            conv_general_dilated=self.ops.conv_general_dilated,
        )

    def dense(self, features: int, *, name: str) -> Conv:
        """Creates a linear layer with a bias over the channels of each pixel: a 1x1 convolution."""
        return self.conv(features, use_bias=True, kernel_init=DENSE_INITS[self.kernel_init], name=name)

    def classifier(self, num_classes: int, *, use_bias: bool, name: str) -> Conv:
        """Creates a 1x1 convolution to logits, which are float32 or wider."""
        return self.conv(
            num_classes,
            use_bias=use_bias,
            kernel_init=CLASSIFIER_INITS[self.kernel_init],
            dtype=accumulator(self.dtype),
            name=name,
        )

    @property
    def depthwise_conv(self):
        """`DepthwiseConv` with padding, dtype and operation bound."""
        return functools.partial(
            DepthwiseConv,
            padding=self.padding,
            dtype=self.dtype,
            conv_general_dilated=self.ops.conv_general_dilated,
        )

    @property
    def concat_conv(self):
        """`ConcatConv` with initializer, dtype and operation bound."""
        return functools.partial(
            ConcatConv,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            conv_general_dilated=self.ops.conv_general_dilated,
        )

    @property
    def norm(self):
        """`BatchNorm` with epsilon, decay, dtype, the choice of statistics and operation bound."""
        return functools.partial(
            BatchNorm,
            use_running_average=self.use_running_average,
            decay=self.norm_decay,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
            batch_norm=self.ops.batch_norm,
        )

    def layer_norm(self, epsilon: float, *, name: str) -> LayerNorm:
        """Creates a `LayerNorm` whose result has the compute dtype."""
        return LayerNorm(epsilon=epsilon, dtype=self.dtype, name=name)

    def max_pool(
        self, x: Float[Array, "batch height width channels"], *, window: int, stride: int
    ) -> Float[Array, "batch out_h out_w channels"]:
        """Max-pools with the part's padding. Returns ceil(size / stride) pixels per axis."""
        return self.ops.max_pool(x, (window, window), (stride, stride), lax_padding(self.padding, (window, window)))

    def add(self, shortcut: Float[Array, "..."], residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """Adds the residual branch of a unit to its shortcut."""
        return self.ops.add(shortcut, residual)


class ConvNormAct(nn.Module):
    """A convolution without bias, BatchNorm and ReLU.

    Attributes:
      layers: the layer constructors.
      features: number of output channels.
      kernel_size: height and width of the kernel.
      rate: the atrous rate, along both axes or along each.
      separable: whether the convolution is a depthwise (atrous) one followed by a pointwise one (DeepLabv3+, section
        3.1).
      separable_norm: whether BatchNorm and ReLU follow both of these, as in research/deeplab's
        `split_separable_conv2d`, or only the second, as in segmentation_models.pytorch.
    """

    layers: Layers
    features: int
    kernel_size: int = 1
    rate: int | tuple[int, int] = 1
    separable: bool = False
    separable_norm: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width features"]:
        """Returns non-negative features at the size of `x`."""
        kernel_size, rate = self.kernel_size, self.rate
        if self.separable:
            x = self.layers.depthwise_conv(kernel_size=kernel_size, rate=rate, name="depthwise_conv")(x)
            if self.separable_norm:
                x = nn.relu(self.layers.norm(name="depthwise_norm")(x))
            kernel_size, rate = 1, 1
        x = self.layers.conv(self.features, kernel_size=kernel_size, rate=rate, name="conv")(x)
        return nn.relu(self.layers.norm(name="norm")(x))
