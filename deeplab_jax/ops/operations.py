"""The set of operations that a network calls, and the choice of a set by platform."""

import dataclasses
import os
from collections.abc import Callable

from jax import lax

from deeplab_jax.errors import UserError
from deeplab_jax.ops.norm import batch_norm
from deeplab_jax.ops.pool import max_pool
from deeplab_jax.ops.resize import resize_bilinear, resize_bilinear_of_split_rows

#: Environment variable that turns the CPU backend off when it is set to `xla`.
SWITCH = "DEEPLAB_JAX_OPS"


@dataclasses.dataclass(frozen=True)
class Operations:
    """The operations of a network, as functions.

    All sets compute the same functions. Every set is a constant, so a model that holds one is hashable and hits the
    cache of `jax.jit`.

    Attributes:
      name: the name of the set.
      conv_general_dilated: has the signature of `jax.lax.conv_general_dilated`.
      max_pool: has the signature of `deeplab_jax.ops.max_pool`.
      batch_norm: has the signature of `deeplab_jax.ops.batch_norm`.
      resize_bilinear: has the signature of `deeplab_jax.ops.resize_bilinear`.
      add: adds a residual branch to its shortcut; has the signature of `jax.lax.add`.
      recomputes_activations: True if the gradients of these operations already recompute cheap activations, so that
        rematerialization has nothing to add.
    """

    name: str
    conv_general_dilated: Callable = dataclasses.field(repr=False)
    max_pool: Callable = dataclasses.field(repr=False)
    batch_norm: Callable = dataclasses.field(repr=False)
    resize_bilinear: Callable = dataclasses.field(repr=False)
    add: Callable = dataclasses.field(repr=False)
    recomputes_activations: bool = dataclasses.field(default=False, repr=False)


XLA = Operations(
    name="xla",
    conv_general_dilated=lax.conv_general_dilated,
    max_pool=max_pool,
    batch_norm=batch_norm,
    resize_bilinear=resize_bilinear,
    add=lax.add,
)
# XLA's partitioner knows the halos of convolutions and pooling, but gathers all rows for a product with a matrix of
# interpolation weights.
SPATIAL = dataclasses.replace(XLA, name="spatial", resize_bilinear=resize_bilinear_of_split_rows)


def select(platform: str, *, spatial: bool = False) -> Operations:
    """Returns the operations for a platform.

    Args:
      platform: the platform of the devices that run the network: "cpu", "gpu" or "tpu".
      spatial: True if the rows of images are split over devices.

    Raises:
      UserError: the environment variable `DEEPLAB_JAX_OPS` has an unknown value.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "xla"):
        raise UserError(f"{SWITCH}={switch} is not a set of operations; set it to xla or unset it")
    if spatial:
        return SPATIAL
    if platform == "cpu" and not switch:
        from deeplab_jax.ops.cpu import CPU  # noqa: PLC0415 - only where it is used

        return CPU
    return XLA
