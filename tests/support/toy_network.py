"""A network of a few layers in the place of DeepLab, for tests of the code around a network: it compiles quickly."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deeplab_jax.ops import XLA, Operations


class _Backbone(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), use_bias=False, dtype=self.dtype, name="stem")(x)
        return nn.Conv(16, (3, 3), use_bias=False, dtype=self.dtype, name="block")(nn.relu(x))


class ToyNetwork(nn.Module):
    """Two convolutions, BatchNorm and a classifier, with the interface of DeepLab."""

    num_classes: int
    in_channels: int = 3
    dtype: Any = jnp.float32
    freeze_norm_statistics: bool = False
    zero_unreached_taps: bool = False
    align_corners: bool = False
    ops: Operations = XLA

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = _Backbone(self.dtype, name="backbone")(images.astype(self.dtype) / 255)
        use_running_average = not train or self.freeze_norm_statistics
        x = nn.BatchNorm(use_running_average, momentum=0.9, dtype=self.dtype, name="norm")(x)
        near_zero = nn.initializers.normal(0.01)
        logits = nn.Conv(self.num_classes, (1, 1), kernel_init=near_zero, dtype=self.dtype, name="classifier")(
            nn.relu(x)
        )
        return logits, {"logits": logits}


#: Top-level names of its parameters, for `deeplab_jax.training.optimizer.make`.
PARTS = ("backbone", "norm", "classifier")
