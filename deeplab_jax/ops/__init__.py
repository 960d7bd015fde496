"""The operations a network is made of: plain XLA, and a CPU backend with the same signatures.

A model calls the functions of its `ops` attribute, an `Operations`. `XLA` is the default on every platform. `SPATIAL`
is for meshes that split the rows of images. `select` picks by platform: on CPUs it returns the backend in `ops/cpu`,
whose README says what XLA:CPU does without it.
"""

from deeplab_jax.ops.norm import batch_norm
from deeplab_jax.ops.operations import SPATIAL, XLA, Operations, select
from deeplab_jax.ops.padding import PADDINGS, lax_padding
from deeplab_jax.ops.pool import max_pool
from deeplab_jax.ops.resize import resize_bilinear, resize_to_sizes

__all__ = [
    "PADDINGS",
    "SPATIAL",
    "XLA",
    "Operations",
    "batch_norm",
    "lax_padding",
    "max_pool",
    "resize_bilinear",
    "resize_to_sizes",
    "select",
]
