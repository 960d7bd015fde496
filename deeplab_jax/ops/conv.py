"""Convolutions over NHWC images: dense and depthwise."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import is_symbolic_dim
from jaxtyping import Array, Bool, Float

from deeplab_jax.ops import winograd
from deeplab_jax.ops.padding import explicit_padding, lax_padding
from deeplab_jax.ops.platform import UNCHANGED, after, on_cpu, stored, transposed

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# Up to this share of taps inside the picture, a matrix product for each tap's part of it beats the convolution, which
# multiplies the padding too. At .56 (rate 6 on 16x16) it takes half the time forwards and four fifths for the kernel's
# gradient; at .92 (rate 2 on 32x32) the copies of the parts cost more than the products save.
_SPARSE_SHARE = 0.6
# The same for depthwise kernels: without a padded copy, which at .56 (rate 12 on 32x32) has three times the pixels, the
# parts take a half to a quarter of the time.
_SPARSE_DEPTHWISE_SHARE = 0.6
# Inputs of more values than this have the gradient of a dense kernel as matrix products, of a band of rows at a time:
# XLA:CPU computes it as a convolution with a window as large as the picture, at a third to a half of the speed (the
# 7x7 stem on 512x512: 13 GFLOP/s, as products 40; 3x3 of 64 channels on 128x128: 27 and 59). Below it what a loop costs
# counts. Bands of 4 to 16 rows are equally fast, a whole picture leaves the cache.
_SMALL_VALUES = 2e5
_BAND = 8


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

    On CPUs a 1x1 convolution is a matrix product, which XLA:CPU runs several times faster forwards and backwards. An
    atrous convolution most of whose taps fall outside the picture is a matrix product for each tap, of the part of the
    picture that the tap meets. Other large 3x3 convolutions of stride 1 make fewer multiplications
    (`ops/winograd.py`). What is left runs at the speed of XLA:CPU's matrix products, but for the kernel's
    gradient: see `_SMALL_VALUES`.

    Args:
      x: the pictures or features.
      kernel: the taps, for each input channel and each output feature.
      stride: of the window, in pixels along both axes.
      rate: the atrous rate: pixels from tap to tap.
      padding: one of `PADDINGS`, see `explicit_padding`.
      formulation: see `deeplab_jax.ops`.

    Raises:
      ValueError: `symmetric` padding of a kernel of even size.
    """
    pads = explicit_padding(padding, x.shape[1:3], kernel.shape[:2], stride=stride, rate=rate)
    meeting = _Meeting(x.shape[1:3], kernel.shape[:2], rate=rate, pads=pads)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            lax_padding(padding, pads),
            rhs_dilation=(rate, rate),
            dimension_numbers=_DIMENSIONS,
        )

    def subsample(x):
        return x[:, ::stride, ::stride]

    def matmul(x, kernel):
        return _multiply(subsample(x), kernel[0, 0]).astype(x.dtype)

    def matmul_backward(x, kernel, cotangent):
        x = after(x, cotangent)
        of_kernel = _kernel_gradient(subsample(x), cotangent)
        of_pixels = _multiply(cotangent, after(kernel[0, 0], of_kernel).T).astype(x.dtype)
        return *jax.linear_transpose(subsample, x)(of_pixels), of_kernel.reshape(kernel.shape).astype(kernel.dtype)

    def taps(x, kernel):
        terms = (
            _place(_multiply(x[:, *source], kernel[row, column]), target, x.shape[1:3])
            for row, column, source, target in meeting
        )
        return functools.reduce(jnp.add, terms).astype(x.dtype)

    def taps_backward(x, kernel, cotangent):
        x = after(x, cotangent)
        of_taps = {
            (row, column): _kernel_gradient(x[:, *source], cotangent[:, *target])
            for row, column, source, target in meeting
        }
        of_kernel = _stack_taps(of_taps, kernel)
        later = after(kernel, of_kernel)
        terms = (
            _place(_multiply(cotangent[:, *target], later[row, column].T), source, x.shape[1:3])
            for row, column, source, target in meeting
        )
        return functools.reduce(jnp.add, terms).astype(x.dtype), of_kernel

    def banded_backward(x, kernel, cotangent):
        x = after(x, cotangent)
        (above, _), (before, _) = pads
        height, width = x.shape[1:3]
        out_height, out_width = cotangent.shape[1:3]
        band = min(_BAND, out_height)
        bands = -(-out_height // band)
        rows, columns = (_offsets(taps, rate) for taps in kernel.shape[:2])
        tall, wide = (stride * (extent - 1) + 1 for extent in (band, out_width))  # first to last pixel that a tap meets
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
            # The taps of a row together, so that few channels make no thin product.
            return total + jnp.stack([_kernel_gradient(jnp.concatenate(row, -1), of_cotangent) for row in windows])

        zero = jnp.zeros((len(rows), len(columns) * x.shape[-1], kernel.shape[-1]), _accumulator(x.dtype))
        of_kernel = lax.fori_loop(0, bands, add_band, zero).reshape(kernel.shape).astype(kernel.dtype)
        later = after(kernel, of_kernel)
        (x_cotangent,) = jax.linear_transpose(lambda x: plain(x, later), x)(cotangent)
        return x_cotangent, of_kernel

    def wide(*arrays):
        return (array.astype(_accumulator(array.dtype)) for array in arrays)

    def few_products(x, kernel):
        # Otherwise XLA:CPU keeps, for the gradient, what the outputs are put together from and the outputs too.
        return stored(winograd.convolve(*wide(x, kernel), rate=rate).astype(x.dtype))

    def few_products_backward(x, kernel, cotangent):
        x = after(x, cotangent)
        of_kernel = winograd.kernel_gradient(*wide(x, cotangent), rate=rate).astype(kernel.dtype)
        of_pixels = winograd.pixel_gradient(*wide(after(kernel, of_kernel), cotangent), rate=rate)
        return of_pixels.astype(x.dtype), of_kernel

    if formulation in UNCHANGED:
        return plain(x, kernel)
    if kernel.shape[:2] == (1, 1):
        return on_cpu(matmul, matmul_backward, plain=plain, plain_backward=transposed(plain))(x, kernel)
    if stride == 1 and meeting.share() <= _SPARSE_SHARE:
        return on_cpu(taps, taps_backward, plain=plain, plain_backward=transposed(plain))(x, kernel)
    fixed = not is_symbolic_dim(x.size)  # a batch that is a symbol is exported, without gradients
    if fixed and winograd.is_worthwhile(x.shape[1:3], kernel.shape, batch=x.shape[0], stride=stride, rate=rate):
        return on_cpu(few_products, few_products_backward, plain=plain, plain_backward=transposed(plain))(x, kernel)
    if fixed and x.size > _SMALL_VALUES:
        return on_cpu(plain, banded_backward, plain=plain, plain_backward=transposed(plain))(x, kernel)
    return on_cpu(plain, transposed(plain, in_order=True), plain=plain, plain_backward=transposed(plain))(x, kernel)


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

    On CPUs it is a sum of shifted pictures, one for each tap: XLA:CPU's grouped convolution is ten times slower. The
    kernel's gradient is summed row by row, of the parts of rows that taps meet: XLA:CPU reduces over a whole batch
    channel by channel, jumping from pixel to pixel, at a third of the speed, and a padded copy of the batch would take
    as long as a third of the sums. Where most taps fall outside the picture, only the parts that taps meet are touched.
    """
    pads = explicit_padding(padding, x.shape[1:3], kernel.shape[:2], stride=stride, rate=rate)
    meeting = _Meeting(x.shape[1:3], kernel.shape[:2], rate=rate, pads=pads)
    channels = x.shape[-1]
    accumulator = _accumulator(x.dtype)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            lax_padding(padding, pads),
            rhs_dilation=(rate, rate),
            dimension_numbers=_DIMENSIONS,
            feature_group_count=channels,
        )

    def wide_taps(x, kernel, pads=pads):
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        out_height, out_width = (-(-size // stride) for size in x.shape[1:3])
        total = None
        for row in range(kernel.shape[0]):
            for column in range(kernel.shape[1]):
                window = padded[
                    :,
                    row * rate : row * rate + stride * (out_height - 1) + 1 : stride,
                    column * rate : column * rate + stride * (out_width - 1) + 1 : stride,
                ]
                term = window * kernel[row, column].reshape(1, 1, 1, channels)
                total = term if total is None else total + term
        return total

    def wide_sparse_taps(x, kernel):
        terms = (
            _place(x[:, *source] * kernel[row, column].reshape(1, 1, 1, channels), target, x.shape[1:3])
            for row, column, source, target in meeting
        )
        return functools.reduce(jnp.add, terms)

    def kernel_backward(x, kernel, cotangent):
        height, width = x.shape[1:3]
        _, out_height, out_width, _ = cotangent.shape
        (above, _), (before, _) = pads
        columns = [_inside(left - before, width, out_width, stride=stride) for left in _offsets(kernel.shape[1], rate)]

        def add_row(row, sums):
            of_cotangent = lax.dynamic_slice_in_dim(cotangent, row, 1, axis=1).astype(accumulator)
            sums = iter(sums)
            new_sums = []
            for top in _offsets(kernel.shape[0], rate):
                source = row * stride + top - above
                inside = ((source >= 0) & (source < height)).astype(accumulator)
                of_x = lax.dynamic_slice_in_dim(x, jnp.clip(source, 0, height - 1), 1, axis=1).astype(accumulator)
                for sources, targets in columns:
                    new_sums.append(next(sums) + of_x[:, :, sources] * (of_cotangent[:, :, targets] * inside))
            return tuple(new_sums)

        zeros = [jnp.zeros_like(cotangent[:, :1, targets], accumulator) for _, targets in columns]
        sums = lax.fori_loop(0, out_height, add_row, (*zeros,) * kernel.shape[0])
        return jnp.stack([jnp.sum(total, axis=(0, 1, 2)) for total in sums]).reshape(kernel.shape).astype(kernel.dtype)

    def sparse_kernel_backward(x, kernel, cotangent):
        of_taps = {
            (row, column): jnp.sum(x[:, *source].astype(accumulator) * cotangent[:, *target], axis=(0, 1, 2))
            for row, column, source, target in meeting
        }
        return _stack_taps(of_taps, kernel)

    if formulation in UNCHANGED:
        return plain(x, kernel)
    sparse = stride == 1 and meeting.share() <= _SPARSE_DEPTHWISE_SHARE
    wide = wide_sparse_taps if sparse else wide_taps

    def fast(x, kernel):
        return wide(x.astype(accumulator), kernel.astype(accumulator)).astype(x.dtype)

    def fast_backward(x, kernel, cotangent):
        # Otherwise what computes the cotangent is fused with the taps below, and so computed once for each of them.
        cotangent = lax.optimization_barrier(cotangent)
        x = after(x, cotangent)
        of_kernel = (sparse_kernel_backward if sparse else kernel_backward)(x, kernel, cotangent)
        weights = after(kernel, of_kernel).astype(accumulator)
        cotangent = cotangent.astype(accumulator)
        if stride == 1 and not sparse:
            # Its transpose as shifted parts of one padded picture too: as a sum of padded pictures it takes four times
            # as long, and XLA:CPU may store each of them.
            spans = [rate * (taps - 1) for taps in kernel.shape[:2]]
            mirrored = [(span - begin, span - end) for span, (begin, end) in zip(spans, pads, strict=True)]
            x_cotangent = wide_taps(cotangent, weights[::-1, ::-1], mirrored)
        else:
            transpose = jax.linear_transpose(lambda x: wide(x, weights), jax.ShapeDtypeStruct(x.shape, accumulator))
            (x_cotangent,) = transpose(cotangent)
        return x_cotangent.astype(x.dtype), of_kernel

    return on_cpu(fast, fast_backward, plain=plain, plain_backward=transposed(plain))(x, kernel)


def met_taps(
    size: Sequence[int], window: Sequence[int], *, stride: int = 1, rate: int = 1, padding: str = "symmetric"
) -> Bool[np.ndarray, "kernel_height kernel_width"]:
    """Which taps of a kernel fall inside the picture at one pixel at least.

    Args:
      size: height and width of the picture.
      window: height and width of the kernel.
      stride: of the window, in pixels along both axes.
      rate: the atrous rate: pixels from tap to tap.
      padding: one of `PADDINGS`, see `explicit_padding`.
    """
    axes = []
    for extent, taps, (before, _) in zip(
        size, window, explicit_padding(padding, size, window, stride=stride, rate=rate), strict=True
    ):
        outputs = [
            _inside(tap - before, extent, -(-extent // stride), stride=stride)[1] for tap in _offsets(taps, rate)
        ]
        axes.append([targets.stop > targets.start for targets in outputs])
    return np.logical_and.outer(*axes)


class _Meeting:
    """Where each tap of a kernel of stride 1 falls inside the picture.

    Iterating gives, for every tap that meets the picture at all: its row and column, the (rows, columns) of the input
    that it meets, and the (rows, columns) of the output where it does.
    """

    def __init__(self, size: Sequence[Any], window: Sequence[int], *, rate: int, pads: Sequence[tuple[Any, Any]]):
        self._size, self._window, self._rate, self._pads = size, window, rate, pads

    @functools.cached_property
    def _axes(self):  # where something is asked for: the plain formulation asks nothing, and its sizes may be symbols
        axes = []
        for extent, taps, (before, _) in zip(self._size, self._window, self._pads, strict=True):
            shifts = [offset - before for offset in _offsets(taps, self._rate)]
            axes.append(
                [
                    (tap, *_inside(shift, extent, extent, stride=1))
                    for tap, shift in enumerate(shifts)
                    if abs(shift) < extent
                ]
            )
        return axes

    def __iter__(self) -> Iterator[tuple[int, int, tuple[slice, slice], tuple[slice, slice]]]:
        for row, source_rows, target_rows in self._axes[0]:
            for column, source_columns, target_columns in self._axes[1]:
                yield row, column, (source_rows, source_columns), (target_rows, target_columns)

    def share(self) -> float:
        """Of all taps at all pixels, the share that falls inside the picture."""
        rows, columns = (sum(target.stop - target.start for _, _, target in axis) for axis in self._axes)
        return rows * columns / math.prod((*self._size, *self._window))


def _offsets(taps: int, rate: int) -> range:
    return range(0, taps * rate, rate)


def _inside(shift: int, extent: int, out_extent: int, *, stride: int) -> tuple[slice, slice]:
    """The pixels of a picture that a tap meets, output `o` at pixel `o * stride + shift`, and the outputs that do."""
    first = max(-(shift // stride), 0)
    end = max(min((extent - 1 - shift) // stride + 1, out_extent), first)
    return slice(first * stride + shift, end * stride + shift, stride), slice(first, end)


def _place(x, part, size):
    """x at the (rows, columns) `part` of a picture of zeros."""
    margins = [(rows.start, extent - rows.stop) for rows, extent in zip(part, size, strict=True)]
    return jnp.pad(x, ((0, 0), *margins, (0, 0)))


def _stack_taps(of_taps, kernel):
    """A kernel of what belongs to each (row, column), zero where there is nothing."""
    height, width, *shape = kernel.shape
    zero = jnp.zeros(shape, kernel.dtype)
    taps = [of_taps.get((row, column), zero) for row in range(height) for column in range(width)]
    return jnp.stack([tap.reshape(shape).astype(kernel.dtype) for tap in taps]).reshape(kernel.shape)


def _flat(x):
    return x.reshape(-1, x.shape[-1])


def _multiply(x, weights):
    """A matrix product over the last axis, in float32 or wider.

    Flat, since XLA:CPU runs the gradients of a product of 4-D arrays slower. bfloat16 with a float32 result is what
    processors have an instruction for; XLA:CPU would convert the factors of a bfloat16 result to float32 first.
    """
    flat = jnp.matmul(_flat(x), weights, preferred_element_type=_accumulator(x.dtype))
    return flat.reshape(*x.shape[:-1], -1)


def _kernel_gradient(x, cotangent):
    """The gradient of `_multiply` with respect to the weights."""
    return jnp.matmul(_flat(x).T, _flat(cotangent), preferred_element_type=_accumulator(x.dtype))


def _accumulator(dtype):
    """In what sums are made, so that bfloat16 is rounded once."""
    return jnp.promote_types(dtype, jnp.float32)
