"""The CPU backend as a set of operations."""

from deeplab_jax.ops.cpu.convolution import conv_general_dilated
from deeplab_jax.ops.cpu.norm import batch_norm
from deeplab_jax.ops.cpu.pool import max_pool
from deeplab_jax.ops.cpu.scheduling import add
from deeplab_jax.ops.operations import Operations
from deeplab_jax.ops.resize import resize_bilinear

CPU = Operations(
    name="cpu",
    conv_general_dilated=conv_general_dilated,
    max_pool=max_pool,
    batch_norm=batch_norm,
    resize_bilinear=resize_bilinear,
    add=add,
    recomputes_activations=True,
)
