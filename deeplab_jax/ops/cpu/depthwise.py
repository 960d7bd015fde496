"""Depthwise convolutions: every channel has its own kernel."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.cpu.scheduling import after, with_backward
from deeplab_jax.ops.cpu.window import Window, place, stack_taps
from deeplab_jax.ops.precision import accumulator, widened

# Up to this share of taps inside the image, only the parts under taps are read. Without a padded copy, which at .56
# (rate 12 on 32x32) has three times the pixels, they take a half to a quarter of the time.
_SPARSE_SHARE = 0.6


def convolve(
    window: Window,
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width 1 channels"],
) -> Float[Array, "batch out_height out_width channels"]:
    """Convolves each channel with its own kernel.

    The result is a sum of shifted images, one per tap. The kernel gradient is summed row by row, over the parts of rows
    under each tap: XLA:CPU reduces over a whole batch channel by channel, jumping from pixel to pixel, at a third of
    the speed, and a padded copy of the batch would take a third of the time of the sums. If most taps are outside the
    image, only the parts under taps are read.
    """
    sparse = window.stride == 1 and window.share() <= _SPARSE_SHARE
    forward, backward = (_sparse, _sparse_backward) if sparse else (_shifted, _shifted_backward)
    return with_backward(functools.partial(forward, window), functools.partial(backward, window))(x, kernel)


def _shifted(window, x, kernel):
    return _shifted_sum(window, *widened(x, kernel), window.pads).astype(x.dtype)


def _shifted_backward(window, x, kernel, cotangent):
    x = after(x, cotangent)
    of_kernel = _kernel_gradient(window, x, kernel, cotangent)
    weights, wide_cotangent = widened(after(kernel, of_kernel), cotangent)
    if window.stride == 1:
        # Shifted parts of one padded image: a sum of padded images takes four times as long, and XLA:CPU may store each
        # of them.
        spans = [offsets[-1] for offsets in window.offsets]
        mirrored = [(span - begin, span - end) for span, (begin, end) in zip(spans, window.pads, strict=True)]
        of_pixels = _shifted_sum(window, wide_cotangent, weights[::-1, ::-1], mirrored)
    else:
        of_pixels = window.scatter(lambda row, column: wide_cotangent * _factors(weights, row, column))
    return of_pixels.astype(x.dtype), of_kernel


def _sparse(window, x, kernel):
    return _sparse_sum(window, *widened(x, kernel)).astype(x.dtype)


def _sparse_backward(window, x, kernel, cotangent):
    x = after(x, cotangent)
    of_taps = {
        (row, column): jnp.sum(x[:, *source].astype(accumulator(x.dtype)) * cotangent[:, *target], axis=(0, 1, 2))
        for row, column, source, target in window.meetings()
    }
    of_kernel = stack_taps(of_taps, kernel)
    weights, wide_cotangent = widened(after(kernel, of_kernel), cotangent)
    wide_x = jax.ShapeDtypeStruct(x.shape, wide_cotangent.dtype)
    (of_pixels,) = jax.linear_transpose(lambda x: _sparse_sum(window, x, weights), wide_x)(wide_cotangent)
    return of_pixels.astype(x.dtype), of_kernel


def _shifted_sum(window, x, kernel, pads):
    """Sums shifted parts of one padded image, times their taps."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    terms = (view * _factors(kernel, row, column) for row, column, view in window.views(padded))
    return functools.reduce(jnp.add, terms)


def _sparse_sum(window, x, kernel):
    """Sums the parts of the image under each tap, times the tap."""
    terms = (
        place(x[:, *source] * _factors(kernel, row, column), target, window.size)
        for row, column, source, target in window.meetings()
    )
    return functools.reduce(jnp.add, terms)


def _kernel_gradient(window, x, kernel, cotangent):
    """Sums the kernel gradient row by row of the output."""
    stride, (height, _), (rows, _) = window.stride, window.size, window.offsets
    (above, _), _ = window.pads
    columns = window.columns_met()
    dtype = accumulator(x.dtype)

    def add_row(row, sums):
        of_cotangent = lax.dynamic_slice_in_dim(cotangent, row, 1, axis=1).astype(dtype)
        sums = iter(sums)
        new_sums = []
        for top in rows:
            source = row * stride + top - above
            inside = ((source >= 0) & (source < height)).astype(dtype)
            of_x = lax.dynamic_slice_in_dim(x, jnp.clip(source, 0, height - 1), 1, axis=1).astype(dtype)
            for sources, targets in columns:
                new_sums.append(next(sums) + of_x[:, :, sources] * (of_cotangent[:, :, targets] * inside))
        return tuple(new_sums)

    zeros = [jnp.zeros_like(cotangent[:, :1, targets], dtype) for _, targets in columns]
    sums = lax.fori_loop(0, cotangent.shape[1], add_row, (*zeros,) * len(rows))
    return jnp.stack([jnp.sum(total, axis=(0, 1, 2)) for total in sums]).reshape(kernel.shape).astype(kernel.dtype)


def _factors(kernel, row, column):
    """Returns a tap as factors of the channels of images."""
    return kernel[row, column].reshape(1, 1, 1, -1)
