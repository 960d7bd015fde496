"""Convolutions with the signature of `jax.lax.conv_general_dilated`."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from deeplab_jax.ops.cpu import dense, depthwise
from deeplab_jax.ops.cpu.window import Window

_NHWC, _HWIO = (0, 3, 1, 2), (3, 2, 0, 1)


def conv_general_dilated(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> Array:
    """Computes `jax.lax.conv_general_dilated`.

    Dense and depthwise convolutions of NHWC images with equal strides and rates along both axes, whose output has
    ceil(size / stride) pixels, run on code of our own. Everything else, such as groups of several channels and symbolic
    sizes, goes to `jax.lax`.
    """
    lhs, rhs, groups = jnp.asarray(lhs), jnp.asarray(rhs), feature_group_count
    options = {name: value for name, value in options.items() if value is not None}
    window = None
    if not options and _is_plain(lhs, rhs, dimension_numbers, lhs_dilation):
        window = Window.of(lhs.shape[1:3], rhs.shape[:2], window_strides, padding, rhs_dilation)
    if window is not None and groups == 1:
        return dense.convolve(window, lhs, rhs)
    if window is not None and groups == lhs.shape[-1] == rhs.shape[-1]:
        return depthwise.convolve(window, lhs, rhs)
    return lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, groups, **options
    )


def _is_plain(lhs: Array, rhs: Array, dimension_numbers: Any, lhs_dilation: Any) -> bool:
    if not all(isinstance(size, int) for size in lhs.shape) or tuple(lhs_dilation or (1, 1)) != (1, 1):
        return False
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    return numbers.lhs_spec == numbers.out_spec == _NHWC and numbers.rhs_spec == _HWIO
