"""Dense 3x3 convolutions of stride 1 with 16 multiplications per 2x2 outputs instead of 36.

Winograd's F(2x2, 3x3) as in arXiv 1509.09308, section 4.1: a tile of 4x4 pixels and the 3x3 kernel are each transformed
to 16 values, these are multiplied, and sums of the 16 products are the 2x2 outputs. Over channels and tiles that is 16
matrix products. An atrous convolution is the same on every `rate`-th pixel. All factors are 1 or 1/2, so rounding grows
little.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.cpu.products import flat, weight_gradient
from deeplab_jax.ops.cpu.scheduling import after

# Below this number of multiplications, the overhead of 16 products and their sums dominates.
_LEAST_MULTIPLICATIONS = 5e7
# Thin products run at a fraction of the speed. No convolution of the benchmarked networks has fewer.
_LEAST_CHANNELS = 64
# Tiles reach beyond images whose size is not a multiple of 2 * rate. At most this share of the multiplications of a
# direct convolution is worthwhile: the transforms before and after the products take time too.
_WORTHWHILE = 0.75
# Images with more values (channels and features of all tiles) than this are convolved one band of rows at a time, so
# that the 16 values of each stay close to the cache and take little memory: 304 to 256 channels on four images of
# 128x128, 9e6 values, take 370 MiB as a whole and 120 MiB in bands. For smaller ones the loop and its copies cost more:
# both gradients of 64 channels on four images of 128x128, 2e6 values, take 38 ms as a whole and 60 ms in two bands,
# those of 128 channels, 4e6 values, 105 and 132 ms.
_WHOLE_VALUES = 4.5e6
_BAND_VALUES = 1.2e6


def is_worthwhile(size: Sequence[int], kernel: Sequence[int], *, batch: int, stride: int, rate: int) -> bool:
    """Returns True if `convolve` computes this convolution and is faster than XLA's.

    Args:
      size: height and width of the images.
      kernel: height, width, channels and features.
      batch: number of images.
      stride: the stride along both axes.
      rate: the atrous rate.
    """
    *window, channels, features = kernel
    if window != [3, 3] or stride != 1 or min(channels, features) < _LEAST_CHANNELS:
        return False
    by_taps = 9 * math.prod(size)
    by_tiles = 16 * rate**2 * math.prod(_tiles_along(extent, rate) for extent in size)
    return by_tiles <= _WORTHWHILE * by_taps and batch * by_taps * channels * features >= _LEAST_MULTIPLICATIONS


def convolve(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "3 3 channels features"], *, rate: int
) -> Float[Array, "batch height width features"]:
    """Convolves with taps `rate` pixels apart; zeros beyond the borders keep the size.

    Args:
      x: the images or features.
      kernel: the taps, for each input channel and each output feature.
      rate: the atrous rate: pixels from tap to tap.
    """
    # Otherwise XLA:CPU computes the matrices of all kernels of a program at its start, and keeps them.
    return _convolve(x, _kernel_matrices(after(kernel, x), range(3)), rate)


def pixel_gradient(
    kernel: Float[Array, "3 3 channels features"], cotangent: Float[Array, "batch height width features"], *, rate: int
) -> Float[Array, "batch height width channels"]:
    """Returns the gradient of `convolve` with respect to the images.

    Args:
      kernel: the taps.
      cotangent: the cotangent of the output.
      rate: the atrous rate.
    """
    # A convolution with mirrored taps. Products take transposed matrices as they are; transposing the kernel first took
    # longer than the products.
    matrices = _kernel_matrices(kernel, range(2, -1, -1))
    return _convolve(cotangent, [[matrix.T for matrix in row] for row in matrices], rate)


def kernel_gradient(
    x: Float[Array, "batch height width channels"], cotangent: Float[Array, "batch height width features"], *, rate: int
) -> Float[Array, "3 3 channels features"]:
    """Returns the gradient of `convolve` with respect to the kernel.

    Args:
      x: the images or features.
      cotangent: the cotangent of the output.
      rate: the atrous rate.
    """
    channels, features = x.shape[-1], cotangent.shape[-1]
    bands = _Bands.of(x, features, rate)
    padded, cotangent = bands.with_border(x), bands.without_border(cotangent)

    def add_band(index, total):
        pixels = _pixel_matrices(bands.take(padded, index, border=2 * rate), rate)
        cotangents = _cotangent_matrices(bands.take(cotangent, index), rate)
        return _each(jnp.add, total, _each(weight_gradient, pixels, cotangents))

    zero = after(jnp.zeros((channels, features), x.dtype), cotangent)
    total = lax.fori_loop(0, bands.count, add_band, [[zero] * 4] * 4)
    return jnp.stack([jnp.stack(row) for row in _on_both_axes(_tap_gradients, total)])


def _convolve(x, weights, rate):
    features = weights[0][0].shape[-1]
    bands = _Bands.of(x, features, rate)
    padded = bands.with_border(x)

    def put_band(index, output):
        pixels = _pixel_matrices(bands.take(padded, index, border=2 * rate), rate)
        tiles = (len(x), bands.tiles_high, rate, bands.tiles_wide, rate, features)
        products = _each(lambda pixels, weights: (pixels @ weights).reshape(tiles), pixels, weights)
        rows = [jnp.stack(row, axis=4) for row in _on_both_axes(_output_values, products)]
        outputs = jnp.stack(rows, axis=2).reshape(len(x), bands.rows, bands.columns, features)
        return lax.dynamic_update_slice_in_dim(output, outputs, index * bands.rows, axis=1)

    # Otherwise XLA:CPU allocates the outputs of all loops of a program at its start.
    empty = after(jnp.zeros((len(x), bands.count * bands.rows, bands.columns, features), x.dtype), x)
    return lax.fori_loop(0, bands.count, put_band, empty)[:, : x.shape[1], : x.shape[2]]


class _Bands(NamedTuple):
    """Bands of rows of tiles that cover images. Tiles of all phases of an atrous rate are next to each other."""

    count: int
    tiles_high: int  # in one band
    tiles_wide: int
    rate: int

    @classmethod
    def of(cls, x: Array, features: int, rate: int) -> "_Bands":
        """Divides images that are convolved to a number of features."""
        batch, height, width, channels = x.shape
        tiles_high, tiles_wide = (_tiles_along(extent, rate) for extent in (height, width))
        in_a_row = batch * tiles_wide * rate**2 * (channels + features)
        fits = in_a_row * tiles_high <= _WHOLE_VALUES
        of_a_band = tiles_high if fits else max(1, int(_BAND_VALUES / in_a_row))
        count = math.ceil(tiles_high / of_a_band)
        return cls(count, math.ceil(tiles_high / count), tiles_wide, rate)

    @property
    def rows(self) -> int:
        """Height of a band in pixels."""
        return 2 * self.rate * self.tiles_high

    @property
    def columns(self) -> int:
        """Width of a band in pixels."""
        return 2 * self.rate * self.tiles_wide

    def without_border(self, x: Array) -> Array:
        """Pads images with zeros after their last pixels, to whole tiles."""
        _, height, width, _ = x.shape
        behind = self.count * self.rows - height, self.columns - width
        return jnp.pad(x, ((0, 0), (0, behind[0]), (0, behind[1]), (0, 0)))

    def with_border(self, x: Array) -> Array:
        """Pads images to whole tiles and `rate` zeros on each side."""
        _, height, width, _ = x.shape
        behind = self.count * self.rows + self.rate - height, self.columns + self.rate - width
        return jnp.pad(x, ((0, 0), (self.rate, behind[0]), (self.rate, behind[1]), (0, 0)))

    def take(self, padded: Array, index: Any, *, border: int = 0) -> Array:
        """Returns the rows of a band and of its border."""
        return lax.dynamic_slice_in_dim(padded, index * self.rows, self.rows + border, axis=1)


def _tiles_along(extent, rate):
    return -(-extent // (2 * rate))


def _halves(x, rate):
    """Splits each axis of pixels into tiles, halves of a tile, and phases of the rate."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // (2 * rate), 2, rate, width // (2 * rate), 2, rate, channels)


def _pixel_matrices(padded, rate):
    """Returns 16 matrices (tiles, channels)."""
    halves = _halves(padded, rate)
    rows, columns = halves.shape[1] - 1, halves.shape[4] - 1  # the border adds one tile

    def pixel(row, column):
        top, left = row // 2, column // 2
        return halves[:, top : top + rows, row % 2, :, left : left + columns, column % 2]

    return _each(flat, _on_both_axes(_pixel_values, [[pixel(row, column) for column in range(4)] for row in range(4)]))


def _kernel_matrices(kernel, taps):
    """Returns 16 matrices (channels, features) of a kernel with its rows and columns in the order of `taps`."""
    return _on_both_axes(_kernel_values, [[kernel[row, column] for column in taps] for row in taps])


def _cotangent_matrices(cotangent, rate):
    """Returns 16 matrices (tiles, features)."""
    halves = _halves(cotangent, rate)
    pixels = [[halves[:, :, row, :, :, column] for column in range(2)] for row in range(2)]
    return _each(flat, _on_both_axes(_output_cotangents, pixels))


def _each(function: Callable, *grids: list[list[Array]]) -> list[list[Array]]:
    """Applies a function to the arrays at each place of the grids."""
    return [[function(*arrays) for arrays in zip(*rows, strict=True)] for rows in zip(*grids, strict=True)]


def _on_both_axes(transform: Callable, grid: list[list[Array]]) -> list[list[Array]]:
    """Applies a transform of one axis to every row of a grid, then to every column."""
    rows = [transform(*row) for row in grid]
    columns = [transform(*column) for column in zip(*rows, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


# The matrices of section 4.1 applied to one axis, and their transposes.


def _pixel_values(a, b, c, d):  # B^T
    return a - c, b + c, c - b, b - d


def _kernel_values(a, b, c):  # G
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _output_values(a, b, c, d):  # A^T
    return a + b + c, b - c - d


def _output_cotangents(a, b):  # A
    return a, a + b, a - b, -b


def _tap_gradients(a, b, c, d):  # G^T
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d
