"""Taps of atrous kernels that fall outside an image at every pixel.

DeepLabv3 (arXiv 1706.05587), section 3.3: where the rate comes close to the size of the feature map, a 3x3 kernel
degenerates to a 1x1 one. A tap that meets nothing in images of one size learns nothing from them, whatever it holds,
but it meets larger images.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import ops
from deeplab_jax.models.layers import Conv, DepthwiseConv


def met_taps_of_kernels(model: nn.Module, image_size: Sequence[int]) -> dict[tuple[str, ...], np.ndarray]:
    """For the path of every kernel, its taps (rows, columns) that meet an image of `image_size`; computes nothing."""
    met: dict[tuple[str, ...], np.ndarray] = {}

    def note(call, args, kwargs, context):
        module = context.module
        if isinstance(module, (Conv, DepthwiseConv)) and context.method_name == "__call__":
            path, window = (*module.path, "kernel"), (module.kernel_size,) * 2
            taps = ops.met_taps(
                args[0].shape[1:3], window, stride=module.stride, rate=module.rate, padding=module.padding
            )
            met[path] = met.get(path, False) | taps
        return call(*args, **kwargs)

    images = jax.ShapeDtypeStruct((1, *image_size, model.in_channels), np.uint8)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda images: model.init(jax.random.PRNGKey(0), images, train=False), images)
    return met


def zero_unmet_taps(params: Any, model: nn.Module, image_size: Sequence[int]) -> Any:
    """`params` with zeros in the taps that meet no image of `image_size`.

    It is the same function of images of this size. Larger ones no longer meet values that training leaves as they
    were drawn; docs/evaluation.md, "Sizes", has what that is worth.
    """
    flat = flax.traverse_util.flatten_dict(params)
    for path, taps in met_taps_of_kernels(model, image_size).items():
        if not taps.all():
            flat[path] = jnp.where(taps[..., None, None], flat[path], 0)
    return flax.traverse_util.unflatten_dict(flat)
