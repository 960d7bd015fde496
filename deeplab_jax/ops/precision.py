"""The dtype that sums are accumulated in."""

from collections.abc import Iterator

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def accumulator(dtype: DTypeLike) -> jnp.dtype:
    """Returns float32 or a wider dtype, so that a bfloat16 sum is rounded once."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(*arrays: Float[Array, "..."]) -> Iterator[Float[Array, "..."]]:
    """Yields the arrays in their accumulator dtypes."""
    return (array.astype(accumulator(array.dtype)) for array in arrays)
