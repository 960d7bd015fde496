"""Depthwise convolutions over NHWC images: every channel with a kernel of its own."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.ops.platform import UNCHANGED, after, on_cpu, transposed
from deeplab_jax.ops.precision import accumulator, widened
from deeplab_jax.ops.window import Window, place, stack_taps

# Up to this share of taps inside the image, only the parts that taps meet are touched: without a padded copy, which
# at .56 (rate 12 on 32x32) has three times the pixels, they take a half to a quarter of the time.
_SPARSE_SHARE = 0.6


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

    On CPUs it is a sum of shifted images, one for each tap: XLA:CPU's grouped convolution is ten times slower. The
    kernel's gradient is summed row by row, of the parts of rows that taps meet: XLA:CPU reduces over a whole batch
    channel by channel, jumping from pixel to pixel, at a third of the speed, and a padded copy of the batch would take
    as long as a third of the sums. Where most taps fall outside the image, only the parts that taps meet are touched.
    """
    window = Window(x.shape[1:3], kernel.shape[:2], stride=stride, rate=rate, padding=padding)
    plain = functools.partial(window.convolve, groups=x.shape[-1])
    if formulation in UNCHANGED:
        return plain(x, kernel)
    sparse = stride == 1 and window.share() <= _SPARSE_SHARE
    forward, backward = (_sparse, _sparse_backward) if sparse else (_shifted, _shifted_backward)
    fast, fast_backward = functools.partial(forward, window), functools.partial(backward, window)
    return on_cpu(fast, fast_backward, plain=plain, plain_backward=transposed(plain))(x, kernel)


def _shifted(window, x, kernel):
    return _shifted_sum(window, *widened(x, kernel), window.pads).astype(x.dtype)


def _shifted_backward(window, x, kernel, cotangent):
    cotangent = _computed_once(cotangent)
    x = after(x, cotangent)
    of_kernel = _kernel_gradient(window, x, kernel, cotangent)
    weights, wide_cotangent = widened(after(kernel, of_kernel), cotangent)
    if window.stride == 1:
        # Shifted parts of one padded image here too: a sum of padded images takes four times as long, and XLA:CPU
        # may store each of them.
        spans = [offsets[-1] for offsets in window.offsets]
        mirrored = [(span - begin, span - end) for span, (begin, end) in zip(spans, window.pads, strict=True)]
        of_pixels = _shifted_sum(window, wide_cotangent, weights[::-1, ::-1], mirrored)
    else:
        of_pixels = window.scatter(lambda row, column: wide_cotangent * _factors(weights, row, column))
    return of_pixels.astype(x.dtype), of_kernel


def _sparse(window, x, kernel):
    return _sparse_sum(window, *widened(x, kernel)).astype(x.dtype)


def _sparse_backward(window, x, kernel, cotangent):
    cotangent = _computed_once(cotangent)
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
    """Shifted parts of one padded image, times their taps."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    terms = (view * _factors(kernel, row, column) for row, column, view in window.views(padded))
    return functools.reduce(jnp.add, terms)


def _sparse_sum(window, x, kernel):
    """The parts of the image that taps meet, times these."""
    terms = (
        place(x[:, *source] * _factors(kernel, row, column), target, window.size)
        for row, column, source, target in window.meetings()
    )
    return functools.reduce(jnp.add, terms)


def _kernel_gradient(window, x, kernel, cotangent):
    """Summed row by row of the output."""
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


def _computed_once(cotangent):
    # Otherwise what computes the cotangent is fused with the taps, and so computed once for each of them.
    return lax.optimization_barrier(cotangent)


def _factors(kernel, row, column):
    """A tap, as factors of the channels of images."""
    return kernel[row, column].reshape(1, 1, 1, -1)
