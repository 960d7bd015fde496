"""Taps of atrous kernels that fall outside the features at every pixel.

DeepLabv3 (arXiv 1706.05587), section 3.3: as the rate approaches the size of the feature map, a 3x3 kernel degenerates
to a 1x1 kernel. A tap that no image of the training size reaches receives no gradient and keeps its initial value, but
larger images do reach it.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool

from deeplab_jax.models.layers import Conv, DepthwiseConv
from deeplab_jax.ops import lax_padding


def reached_taps(
    size: Sequence[int],
    taps: Sequence[int],
    *,
    stride: int = 1,
    rate: int | tuple[int, int] = 1,
    padding: str = "symmetric",
) -> Bool[np.ndarray, "kernel_height kernel_width"]:
    """Returns which taps of a kernel fall inside the image at one output pixel at least.

    Args:
      size: height and width of the image.
      taps: height and width of the kernel.
      stride: the stride along both axes.
      rate: the atrous rate: the distance between taps in pixels, along both axes or along each.
      padding: one of `deeplab_jax.ops.PADDINGS`.
    """
    rates = (rate, rate) if isinstance(rate, int) else rate
    pads = lax_padding(padding, taps, rate=rates)
    if isinstance(pads, str):
        spans = [rate * (count - 1) + 1 for rate, count in zip(rates, taps, strict=True)]
        pads = lax.padtype_to_pads(size, spans, (stride, stride), pads)
    axes = []
    for extent, count, rate, (before, _) in zip(size, taps, rates, pads, strict=True):
        outputs = np.arange(-(-extent // stride)) * stride
        pixels = outputs[None] + rate * np.arange(count)[:, None] - before  # under each tap, at each output
        axes.append(((pixels >= 0) & (pixels < extent)).any(axis=1))
    rows, columns = axes
    return rows[:, None] & columns[None]


def reached_taps_of_kernels(model: nn.Module, image_size: Sequence[int]) -> dict[tuple[str, ...], np.ndarray]:
    """Returns `reached_taps` of every kernel for images of `image_size`, by the path of the kernel."""
    reached: dict[tuple[str, ...], np.ndarray] = {}

    def record(call, args, kwargs, context):
        module = context.module
        if isinstance(module, (Conv, DepthwiseConv)) and context.method_name == "__call__":
            path, window = (*module.path, "kernel"), (module.kernel_size,) * 2
            taps = reached_taps(
                args[0].shape[1:3], window, stride=module.stride, rate=module.rate, padding=module.padding
            )
            reached[path] = reached.get(path, False) | taps
        return call(*args, **kwargs)

    images = jax.ShapeDtypeStruct((1, *image_size, model.in_channels), np.uint8)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda images: model.init(jax.random.PRNGKey(0), images, train=False), images)
    return reached


def zero_unreached_taps(params: Any, model: nn.Module, image_size: Sequence[int]) -> Any:
    """Returns `params` with zeros in the taps that no image of `image_size` reaches.

    For images of this size the network computes the same function. Larger images no longer meet values that training
    left at their initialization; docs/evaluation.md, "Sizes", says what that is worth.
    """
    flat = flax.traverse_util.flatten_dict(params)
    for path, taps in reached_taps_of_kernels(model, image_size).items():
        if not taps.all():
            flat[path] = jnp.where(taps[..., None, None], flat[path], 0)
    return flax.traverse_util.unflatten_dict(flat)
