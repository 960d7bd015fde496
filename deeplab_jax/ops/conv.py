"""Convolutions over NHWC images: dense and depthwise."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.padding import explicit_padding
from deeplab_jax.ops.platform import on_cpu, transposed

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# Up to this share of taps inside the picture, a matrix product for each tap's part of it beats the convolution, which
# multiplies the padding too. At .56 (rate 6 on 16x16) it takes half the time forwards and four fifths for the kernel's
# gradient; at .92 (rate 2 on 32x32) the copies of the parts cost more than the products save.
_SPARSE_SHARE = 0.6
# The same for depthwise kernels: at .25 the parts take two thirds to three quarters of the time, at .56 a quarter more.
_SPARSE_DEPTHWISE_SHARE = 0.4


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

    On CPUs a 1x1 convolution is a matrix product, which XLA:CPU runs several times faster forwards and backwards, and
    an atrous convolution most of whose taps fall outside the picture is a matrix product for each tap, of the part of
    the picture that the tap meets. XLA:CPU's other convolutions run at the speed of its matrix products.
    """
    pads = explicit_padding(padding, x.shape[1:3], kernel.shape[:2], stride=stride, rate=rate)
    meeting = _Meeting(x.shape[1:3], kernel.shape[:2], rate=rate, pads=pads)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), pads, rhs_dilation=(rate, rate), dimension_numbers=_DIMENSIONS
        )

    def matmul(x, kernel):
        return _multiply(x[:, ::stride, ::stride], kernel[0, 0])

    def taps(x, kernel):
        total = None
        for row, column, source, target in meeting:
            term = _multiply(x[:, *source], kernel[row, column])
            term = jnp.pad(term, ((0, 0), *_margins(target, x.shape[1:3]), (0, 0)))
            total = term if total is None else total + term
        return total

    def taps_backward(x, kernel, cotangent):
        (x_cotangent,) = jax.linear_transpose(lambda x: taps(x, kernel), x)(cotangent)
        of_taps = {
            (row, column): _flat(x[:, *source]).T @ _flat(cotangent[:, *target])
            for row, column, source, target in meeting
        }
        return x_cotangent, _stack_taps(of_taps, kernel)

    if formulation == "plain":
        return plain(x, kernel)
    if kernel.shape[:2] == (1, 1):
        return on_cpu(matmul, transposed(matmul), plain=plain, plain_backward=transposed(plain))(x, kernel)
    if stride == 1 and meeting.share() <= _SPARSE_SHARE:
        return on_cpu(taps, taps_backward, plain=plain, plain_backward=transposed(plain))(x, kernel)
    return plain(x, kernel)


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
    kernel's gradient is summed row by row: XLA:CPU reduces over a whole batch channel by channel, jumping from pixel to
    pixel, at a third of the speed. Where most taps fall outside the picture, only the parts that taps meet are touched.
    """
    pads = explicit_padding(padding, x.shape[1:3], kernel.shape[:2], stride=stride, rate=rate)
    meeting = _Meeting(x.shape[1:3], kernel.shape[:2], rate=rate, pads=pads)
    channels = x.shape[-1]
    accumulator = jnp.promote_types(x.dtype, jnp.float32)  # sums of bfloat16 are rounded once

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
        out_height, out_width = (-(-size // stride) for size in x.shape[1:3])
        weights = kernel.astype(accumulator)
        total = None
        for row in range(kernel.shape[0]):
            for column in range(kernel.shape[1]):
                window = padded[
                    :,
                    row * rate : row * rate + stride * (out_height - 1) + 1 : stride,
                    column * rate : column * rate + stride * (out_width - 1) + 1 : stride,
                ]
                term = window.astype(accumulator) * weights[row, column].reshape(1, 1, 1, channels)
                total = term if total is None else total + term
        return total.astype(x.dtype)

    def taps_backward(x, kernel, cotangent):
        # Otherwise what computes the cotangent is fused with the taps below, and so computed once for each of them.
        cotangent = lax.optimization_barrier(cotangent)
        (x_cotangent,) = jax.linear_transpose(lambda x: taps(x, kernel), x)(cotangent)
        return x_cotangent, kernel_backward(x, kernel, cotangent)

    def kernel_backward(x, kernel, cotangent):
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        _, out_height, out_width, _ = cotangent.shape
        columns = [slice(left, left + stride * (out_width - 1) + 1, stride) for left in _offsets(kernel.shape[1], rate)]

        def add_row(row, sums):
            of_cotangent = lax.dynamic_slice_in_dim(cotangent, row, 1, axis=1).astype(accumulator)
            sums = iter(sums)
            new_sums = []
            for top in _offsets(kernel.shape[0], rate):
                of_x = lax.dynamic_slice_in_dim(padded, row * stride + top, 1, axis=1)
                for column in columns:
                    new_sums.append(next(sums) + of_x[:, :, column].astype(accumulator) * of_cotangent)
            return tuple(new_sums)

        zero = jnp.zeros((len(x), 1, out_width, channels), accumulator)
        sums = lax.fori_loop(0, out_height, add_row, (zero,) * (kernel.shape[0] * kernel.shape[1]))
        return jnp.stack([jnp.sum(total, axis=(0, 1, 2)) for total in sums]).reshape(kernel.shape).astype(kernel.dtype)

    def sparse_taps(x, kernel):
        weights = kernel.astype(accumulator)
        total = None
        for row, column, source, target in meeting:
            term = x[:, *source].astype(accumulator) * weights[row, column].reshape(1, 1, 1, channels)
            term = jnp.pad(term, ((0, 0), *_margins(target, x.shape[1:3]), (0, 0)))
            total = term if total is None else total + term
        return total.astype(x.dtype)

    def sparse_taps_backward(x, kernel, cotangent):
        cotangent = lax.optimization_barrier(cotangent)
        (x_cotangent,) = jax.linear_transpose(lambda x: sparse_taps(x, kernel), x)(cotangent)
        of_taps = {
            (row, column): jnp.sum(x[:, *source].astype(accumulator) * cotangent[:, *target], axis=(0, 1, 2))
            for row, column, source, target in meeting
        }
        return x_cotangent, _stack_taps(of_taps, kernel)

    if formulation == "plain":
        return plain(x, kernel)
    if stride == 1 and meeting.share() <= _SPARSE_DEPTHWISE_SHARE:
        return on_cpu(sparse_taps, sparse_taps_backward, plain=plain, plain_backward=transposed(plain))(x, kernel)
    return on_cpu(taps, taps_backward, plain=plain, plain_backward=transposed(plain))(x, kernel)


class _Meeting:
    """Where each tap of a kernel of stride 1 falls inside the picture.

    Iterating gives, for every tap that meets the picture at all: its row and column, the (rows, columns) of the input
    that it meets, and the (rows, columns) of the output where it does.
    """

    def __init__(self, size: Sequence[int], window: Sequence[int], *, rate: int, pads: Sequence[tuple[int, int]]):
        self._area = size[0] * size[1] * window[0] * window[1]
        self._axes = []
        for extent, taps, (before, _) in zip(size, window, pads, strict=True):
            shifts = [offset - before for offset in _offsets(taps, rate)]
            self._axes.append(
                [
                    (
                        tap,
                        slice(max(shift, 0), extent + min(shift, 0)),
                        slice(max(-shift, 0), extent - max(shift, 0)),
                    )
                    for tap, shift in enumerate(shifts)
                    if abs(shift) < extent
                ]
            )

    def __iter__(self) -> Iterator[tuple[int, int, tuple[slice, slice], tuple[slice, slice]]]:
        for row, source_rows, target_rows in self._axes[0]:
            for column, source_columns, target_columns in self._axes[1]:
                yield row, column, (source_rows, source_columns), (target_rows, target_columns)

    def share(self) -> float:
        """Of all taps at all pixels, the share that falls inside the picture."""
        rows, columns = (sum(target.stop - target.start for _, _, target in axis) for axis in self._axes)
        return rows * columns / self._area


def _offsets(taps: int, rate: int) -> range:
    return range(0, taps * rate, rate)


def _margins(target: tuple[slice, slice], size: Sequence[int]) -> list[tuple[int, int]]:
    return [(part.start, extent - part.stop) for part, extent in zip(target, size, strict=True)]


def _stack_taps(of_taps, kernel):
    """A kernel of what belongs to each (row, column), zero where there is nothing."""
    height, width, *shape = kernel.shape
    zero = jnp.zeros(shape, kernel.dtype)
    taps = [of_taps.get((row, column), zero) for row in range(height) for column in range(width)]
    return jnp.stack([tap.reshape(shape).astype(kernel.dtype) for tap in taps]).reshape(kernel.shape)


def _flat(x):
    return x.reshape(-1, x.shape[-1])


def _multiply(x, weights):
    """A matrix product over the last axis. Flat: XLA:CPU runs the gradients of a product of 4-D arrays slower."""
    return (_flat(x) @ weights).reshape(*x.shape[:-1], -1)
