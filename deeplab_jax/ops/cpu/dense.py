"""Dense convolutions."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.cpu import winograd
from deeplab_jax.ops.cpu.products import multiply, weight_gradient
from deeplab_jax.ops.cpu.scheduling import after, stored, transpose_in_order, with_backward
from deeplab_jax.ops.cpu.window import Window, place, stack_taps
from deeplab_jax.ops.precision import accumulator, widened

# Up to this share of taps inside the image, a matrix product per tap beats the convolution, which multiplies the
# padding too. At .56 (rate 6 on 16x16) it takes half the time forward and four fifths for the kernel gradient; at .92
# (rate 2 on 32x32) copying the parts costs more than the products save.
_SPARSE_SHARE = 0.6
# Above this number of input values, the kernel gradient is a sum of matrix products over bands of rows. XLA:CPU
# computes it as a convolution with a window as large as the image, at a third to a half of the speed (7x7 stem on
# 512x512: 13 GFLOP/s, as products 40; 3x3 of 64 channels on 128x128: 27 and 59). Below it the loop costs more than it
# saves.
_SMALL_VALUES = 2e5
_BAND = 8  # rows; bands of 4 to 16 are equally fast, a whole image does not fit the cache


def convolve(
    window: Window,
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
) -> Float[Array, "batch out_height out_width features"]:
    """Convolves with a dense kernel.

    A 1x1 convolution is a matrix product. An atrous convolution with most taps outside the image is a matrix product
    per tap, of the part of the image under that tap. Other large 3x3 convolutions of stride 1 make fewer
    multiplications (`winograd.py`). The rest is XLA's convolution, with the gradient of large kernels as matrix
    products.
    """
    forward, backward = (functools.partial(function, window) for function in _choose(window, x, kernel))
    return with_backward(forward, backward)(x, kernel)


def _choose(window: Window, x: Array, kernel: Array) -> tuple[Callable, Callable]:
    """Returns the functions that compute the output and both cotangents."""
    if window.taps == (1, 1):
        return _matmul, _matmul_backward
    if window.stride == 1 and window.share() <= _SPARSE_SHARE:
        return _taps, _taps_backward
    if winograd.is_worthwhile(window.size, kernel.shape, batch=x.shape[0], stride=window.stride, rate=window.rate):
        return _few_products, _few_products_backward
    return Window.convolve, _banded_backward if x.size > _SMALL_VALUES else _backward


def _backward(window, x, kernel, cotangent):
    return transpose_in_order(window.convolve, x, kernel, cotangent)


# ---- A 1x1 kernel: one matrix product ----


def _matmul(window, x, kernel):
    return multiply(_subsample(window, x), kernel[0, 0]).astype(x.dtype)


def _matmul_backward(window, x, kernel, cotangent):
    x = after(x, cotangent)
    subsample = functools.partial(_subsample, window)
    of_kernel = weight_gradient(subsample(x), cotangent)
    of_pixels = multiply(cotangent, after(kernel[0, 0], of_kernel).T).astype(x.dtype)
    return *jax.linear_transpose(subsample, x)(of_pixels), of_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _subsample(window, x):
    return x[:, :: window.stride, :: window.stride]


# ---- Most taps outside the image: one product per tap ----


def _taps(window, x, kernel):
    terms = (
        place(multiply(x[:, *source], kernel[row, column]), target, window.size)
        for row, column, source, target in window.meetings()
    )
    return functools.reduce(jnp.add, terms).astype(x.dtype)


def _taps_backward(window, x, kernel, cotangent):
    x = after(x, cotangent)
    of_taps = {
        (row, column): weight_gradient(x[:, *source], cotangent[:, *target])
        for row, column, source, target in window.meetings()
    }
    of_kernel = stack_taps(of_taps, kernel)
    later = after(kernel, of_kernel)
    terms = (
        place(multiply(cotangent[:, *target], later[row, column].T), source, window.size)
        for row, column, source, target in window.meetings()
    )
    return functools.reduce(jnp.add, terms).astype(x.dtype), of_kernel


# ---- Large 3x3 kernels of stride 1: fewer multiplications ----


def _few_products(window, x, kernel):
    # Otherwise XLA:CPU keeps both the outputs and the products they are computed from for the gradient.
    return stored(winograd.convolve(*widened(x, kernel), rate=window.rate).astype(x.dtype))


def _few_products_backward(window, x, kernel, cotangent):
    x = after(x, cotangent)
    of_kernel = winograd.kernel_gradient(*widened(x, cotangent), rate=window.rate).astype(kernel.dtype)
    of_pixels = winograd.pixel_gradient(*widened(after(kernel, of_kernel), cotangent), rate=window.rate)
    return of_pixels.astype(x.dtype), of_kernel


# ---- Other large inputs: the kernel gradient as products, one band of rows at a time ----


def _banded_backward(window, x, kernel, cotangent):
    x = after(x, cotangent)
    of_kernel = _banded_kernel_gradient(window, x, kernel, cotangent)
    later = after(kernel, of_kernel)
    (x_cotangent,) = jax.linear_transpose(lambda x: window.convolve(x, later), x)(cotangent)
    return x_cotangent, of_kernel


def _banded_kernel_gradient(window, x, kernel, cotangent):
    stride, (rows, columns) = window.stride, window.offsets
    (above, _), (before, _) = window.pads
    height, width = window.size
    out_height, out_width = cotangent.shape[1:3]
    band = min(_BAND, out_height)
    bands = -(-out_height // band)
    tall, wide = (stride * (extent - 1) + 1 for extent in (band, out_width))  # first to last pixel under a tap
    below = stride * band * (bands - 1) + tall + rows[-1] - above - height
    behind = wide + columns[-1] - before - width
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (above, below, 0), (before, behind, 0), (0, 0, 0)))
    padded_cotangent = jnp.pad(cotangent, ((0, 0), (0, bands * band - out_height), (0, 0), (0, 0)))

    def add_band(index, total):
        of_x = lax.dynamic_slice_in_dim(padded, index * band * stride, tall + rows[-1], axis=1)
        of_cotangent = lax.dynamic_slice_in_dim(padded_cotangent, index * band, band, axis=1)
        windows = (
            [of_x[:, top : top + tall : stride, left : left + wide : stride] for left in columns] for top in rows
        )
        # The taps of a row in one product: with few channels, a product per tap would be thin.
        return total + jnp.stack([weight_gradient(jnp.concatenate(row, -1), of_cotangent) for row in windows])

    zero = jnp.zeros((len(rows), len(columns) * x.shape[-1], kernel.shape[-1]), accumulator(x.dtype))
    return lax.fori_loop(0, bands, add_band, zero).reshape(kernel.shape).astype(kernel.dtype)
