"""Operations of the network: one public function each, which picks the formulation that is fast where it runs.

Every function takes a static `formulation`: "auto" chooses by platform, inside the compiled program, and by shape;
"plain" is the standard XLA operation, which GPUs and TPUs get in any case, and what exports and multiply-add
counts use; "spatial" is for images whose rows are split over devices, on any platform: it flattens no rows into
another axis, and asks other devices for a few rows at most. All formulations of an operation compute the same function.
"""

from deeplab_jax.ops.conv import conv2d
from deeplab_jax.ops.depthwise import depthwise_conv2d
from deeplab_jax.ops.norm import batch_norm
from deeplab_jax.ops.padding import PADDINGS, explicit_padding
from deeplab_jax.ops.platform import stored
from deeplab_jax.ops.pool import max_pool
from deeplab_jax.ops.resize import resize_bilinear, resize_to_sizes
from deeplab_jax.ops.window import met_taps

__all__ = [
    "PADDINGS",
    "batch_norm",
    "conv2d",
    "depthwise_conv2d",
    "explicit_padding",
    "max_pool",
    "met_taps",
    "resize_bilinear",
    "resize_to_sizes",
    "stored",
]
