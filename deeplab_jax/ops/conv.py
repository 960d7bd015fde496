"""Convolutions over NHWC images: dense and depthwise."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.padding import explicit_padding

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv2d(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    *,
    stride: int = 1,
    rate: int = 1,
    padding: str = "symmetric",
    formulation: str = "auto",
) -> Float[Array, "batch out_height out_width features"]:
    """Convolves with a dense kernel whose taps are `rate` pixels apart; the output has ceil(size / stride) pixels.

    On CPUs a 1x1 convolution is a matrix product, which XLA:CPU runs several times faster forwards and backwards.
    """
    pads = explicit_padding(padding, x.shape[1:3], kernel.shape[:2], stride=stride, rate=rate)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), pads, rhs_dilation=(rate, rate), dimension_numbers=_DIMENSIONS
        )

    def matmul(x, kernel):
        x = x[:, ::stride, ::stride]
        flat = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return flat.reshape(*x.shape[:-1], -1)

    if formulation == "plain" or kernel.shape[:2] != (1, 1):
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=matmul, default=plain)


def depthwise_conv2d(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width 1 channels"],
    *,
    stride: int = 1,
    rate: int = 1,
    padding: str = "symmetric",
    formulation: str = "auto",
) -> Float[Array, "batch out_height out_width channels"]:
    """Convolves every channel with a kernel of its own; otherwise as `conv2d`.

    On CPUs it is a sum of shifted pictures, one for each tap: XLA:CPU's grouped convolution is ten times slower.
    """
    pads = explicit_padding(padding, x.shape[1:3], kernel.shape[:2], stride=stride, rate=rate)
    channels = x.shape[-1]

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            pads,
            rhs_dilation=(rate, rate),
            dimension_numbers=_DIMENSIONS,
            feature_group_count=channels,
        )

    def taps(x, kernel):
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        kernel_height, kernel_width = kernel.shape[:2]
        out_height = (padded.shape[1] - rate * (kernel_height - 1) - 1) // stride + 1
        out_width = (padded.shape[2] - rate * (kernel_width - 1) - 1) // stride + 1
        total = None
        for row in range(kernel_height):
            for column in range(kernel_width):
                top, left = row * rate, column * rate
                window = lax.slice(
                    padded,
                    (0, top, left, 0),
                    (len(x), top + stride * (out_height - 1) + 1, left + stride * (out_width - 1) + 1, channels),
                    (1, stride, stride, 1),
                )
                term = window * kernel[row, column].reshape(1, 1, 1, channels)
                total = term if total is None else total + term
        return total

    if formulation == "plain":
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=taps, default=plain)
