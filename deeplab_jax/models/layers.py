"""Convolution and normalization layers: the only place where padding, dtype and BatchNorm options are decided."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from deeplab_jax import ops
from deeplab_jax.ops.precision import accumulator

KERNEL_INITS = {
    "he_normal": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "glorot_uniform": nn.initializers.glorot_uniform(),
}
# Of the last convolution, which no BatchNorm follows: research/deeplab begins with logits near zero, Keras does not.
CLASSIFIER_INITS = {
    "he_normal": nn.initializers.truncated_normal(0.01),
    "glorot_uniform": nn.initializers.glorot_uniform(),
}

_CONVOLUTION = "convolution"  # the name under which rematerialization finds what convolutions return


class Conv(nn.Module):
    """A dense convolution over NHWC images; parameters are float32, the result has the compute dtype."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    rate: int = 1
    use_bias: bool = False
    padding: str = "symmetric"
    kernel_init: nn.initializers.Initializer = KERNEL_INITS["he_normal"]
    dtype: DTypeLike = jnp.float32
    formulation: str = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch out_h out_w features"]:
        """The output has ceil(size / stride) pixels."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = _parameter(self, "kernel", self.kernel_init, shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = ops.conv2d(
            x, kernel, stride=self.stride, rate=self.rate, padding=self.padding, formulation=self.formulation
        )
        if self.use_bias:
            # The gradient of the bias is a sum over all pixels, in float32 even if they are bfloat16.
            bias = _parameter(self, "bias", nn.initializers.zeros_init(), (self.features,))
            x = (x.astype(accumulator(x.dtype)) + bias.reshape(1, 1, 1, -1)).astype(x.dtype)
        return checkpoint_name(x, _CONVOLUTION)


class DepthwiseConv(nn.Module):
    """A convolution of every channel with a kernel of its own."""

    kernel_size: int = 3
    stride: int = 1
    rate: int = 1
    padding: str = "symmetric"
    dtype: DTypeLike = jnp.float32
    formulation: str = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch out_h out_w channels"]:
        """The output has ceil(size / stride) pixels."""
        # HWIO of a grouped convolution: one input channel a group. fan_out counts all groups' outputs, so the
        # variance is set by the fan-in of the window instead.
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(0, 1, 2), out_axis=3)
        kernel = _parameter(self, "kernel", init, (self.kernel_size, self.kernel_size, 1, x.shape[-1]))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = ops.depthwise_conv2d(
            x, kernel, stride=self.stride, rate=self.rate, padding=self.padding, formulation=self.formulation
        )
        return checkpoint_name(x, _CONVOLUTION)


class ConcatConv(nn.Module):
    """A 1x1 convolution of a concatenation, computed as a sum of one projection a branch.

    A 1x1 convolution commutes with broadcasting and with bilinear resizing (whose weights add up to one), so each
    branch is projected at its own resolution by its rows of the common kernel and enlarged afterwards. The kernel has
    the shape that the convolution after the concatenation has in the published model.
    """

    features: int
    kernel_init: str = "he_normal"
    dtype: DTypeLike = jnp.float32
    formulation: str = "auto"

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
            projected = ops.conv2d(branch.astype(self.dtype), rows, formulation=self.formulation)
            projected = resize(projected, size)
            total = projected if total is None else total + projected
            first += count
        return total


class BatchNorm(nn.Module):
    """Batch normalization over NHWC images (arXiv 1502.03167): float32 parameters and statistics, under Flax's names.

    It normalizes by the batch's statistics and moves the running ones, running = decay * running + (1 - decay) * batch,
    or with `use_running_average` by the running ones. Under `jax.jit` over a mesh the batch is the global one.
    """

    use_running_average: bool
    decay: float
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Normalized in the compute dtype."""
        channels = x.shape[-1:]
        scale = _parameter(self, "scale", nn.initializers.ones_init(), channels)
        bias = _parameter(self, "bias", nn.initializers.zeros_init(), channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x = x.astype(self.dtype)
        if self.use_running_average:
            factor = jax.lax.rsqrt(variance.value + self.epsilon) * scale
            x = (x - mean.value.reshape(1, 1, 1, -1)) * factor.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)
            return x.astype(self.dtype)
        x, batch_mean, batch_variance = ops.batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            mean.value = self.decay * mean.value + (1 - self.decay) * batch_mean
            variance.value = self.decay * variance.value + (1 - self.decay) * batch_variance
        return x


def _parameter(module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]) -> Array:
    """A float32 parameter, as `module.param` makes it.

    One that exists is compared by its shape alone. Flax traces what would draw it to learn that shape, for each
    parameter anew, which takes as long as a quarter of tracing a network.

    Raises:
      flax.errors.ScopeParamShapeError: it exists in another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, jnp.float32)
    value = module.get_variable("params", name)
    if value.shape != shape:
        raise flax.errors.ScopeParamShapeError(name, module.scope.path_text, value.shape, shape)
    return value


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layer constructors that one part of the network uses, with its options bound.

    `separable_norm` says whether BatchNorm and ReLU stand between the two convolutions of a separable one. `remat`
    says what the gradient finds kept: everything, what convolutions return (`activations` are computed again, which is
    cheap), or what units receive (`units` are computed again, which is not).
    """

    padding: str
    kernel_init: str
    norm_epsilon: float
    norm_decay: float
    use_running_average: bool
    dtype: DTypeLike
    formulation: str
    separable_norm: bool = True
    remat: str = "none"

    def unit(self, module: type[nn.Module]) -> type[nn.Module]:
        """The module class, whose calls keep for the gradient what `remat` says and compute the rest again."""
        if self.remat == "activations":
            return nn.remat(module, policy=jax.checkpoint_policies.save_only_these_names(_CONVOLUTION))
        return nn.remat(module) if self.remat == "units" else module

    @property
    def conv(self):
        """`Conv` with padding, initializer, dtype and formulation bound."""
        return functools.partial(
            Conv,
            padding=self.padding,
            kernel_init=KERNEL_INITS[self.kernel_init],
            dtype=self.dtype,
            formulation=self.formulation,
        )

    @property
    def depthwise_conv(self):
        """`DepthwiseConv` with padding, dtype and formulation bound."""
        return functools.partial(DepthwiseConv, padding=self.padding, dtype=self.dtype, formulation=self.formulation)

    @property
    def concat_conv(self):
        """`ConcatConv` with initializer, dtype and formulation bound."""
        return functools.partial(
            ConcatConv, kernel_init=self.kernel_init, dtype=self.dtype, formulation=self.formulation
        )

    @property
    def norm(self):
        """`BatchNorm` with epsilon, decay, dtype and the choice of statistics bound."""
        return functools.partial(
            BatchNorm,
            use_running_average=self.use_running_average,
            decay=self.norm_decay,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
        )

    def max_pool(self, x, *, window: int, stride: int):
        """Max-pooling with the part's padding and formulation."""
        return ops.max_pool(x, window=window, stride=stride, padding=self.padding, formulation=self.formulation)

    def stored(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """The sum of a unit, computed once: see `ops.stored`."""
        return ops.stored(x, formulation=self.formulation)


class ConvNormAct(nn.Module):
    """Convolution without bias, BatchNorm, ReLU; `separable` makes it depthwise (atrous) then pointwise.

    The separable form has BatchNorm and ReLU after both of its convolutions, as research/deeplab's
    `split_separable_conv2d` (DeepLabv3+, section 3.1, "atrous separable convolution"), or with
    `layers.separable_norm=False` only after the second, as segmentation_models.pytorch.
    """

    layers: Layers
    features: int
    kernel_size: int = 1
    rate: int = 1
    separable: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width features"]:
        """Features at the size of `x`, none of them negative."""
        kernel_size, rate = self.kernel_size, self.rate
        if self.separable:
            x = self.layers.depthwise_conv(kernel_size=kernel_size, rate=rate, name="depthwise_conv")(x)
            if self.layers.separable_norm:
                x = nn.relu(self.layers.norm(name="depthwise_norm")(x))
            kernel_size, rate = 1, 1
        x = self.layers.conv(self.features, kernel_size=kernel_size, rate=rate, name="conv")(x)
        return nn.relu(self.layers.norm(name="norm")(x))
