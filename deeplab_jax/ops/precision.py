"""In which type sums are made."""

from collections.abc import Iterator

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def accumulator(dtype: DTypeLike) -> jnp.dtype:
    """float32 or wider, so that a bfloat16 sum is rounded once."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(*arrays: Float[Array, "..."]) -> Iterator[Float[Array, "..."]]:
    """The arrays in the types that their sums are made in."""
    return (array.astype(accumulator(array.dtype)) for array in arrays)
