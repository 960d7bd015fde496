"""Max-pooling over NHWC images."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def max_pool(
    x: Float[Array, "batch height width channels"],
    window_shape: Sequence[int],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
) -> Float[Array, "batch out_height out_width channels"]:
    """Returns the largest value in each window, as `flax.linen.max_pool`. Padding never wins.

    Where several values of a window are equal, the first one receives the gradient.

    Args:
      x: the features.
      window_shape: height and width of the window.
      strides: the strides of the window along both axes, in pixels.
      padding: as in `jax.lax`: a rule such as SAME, or pixels before and after both axes.
    """
    pads = padding if isinstance(padding, str) else ((0, 0), *padding, (0, 0))
    # -inf is the identity for which lax knows the gradient.
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window_shape, 1), (1, *strides, 1), pads)
