"""Pretrained networks on images of another number of channels.

The first convolution is the only one that sees the channels of an image. Its kernels are adapted by the rule of
segmentation_models.pytorch (0.6.0, `encoders/_utils.py`):

- for one channel, the kernels of red, green and blue are added up: a gray image gives what its RGB copy gave;
- for more channels, kernels repeat in the order red, green, blue, red, and so on, times 3 / channels, so that the sum
  over all channels keeps its scale.

`input_mean` and `input_std` follow: their mean over red, green and blue for one channel, and else the same repetition.
Training on a prepared data set replaces them by its own.
"""

import dataclasses
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.network import PretrainedNetwork, variable_shapes


def with_channels(network: PretrainedNetwork, in_channels: int) -> PretrainedNetwork:
    """Returns the network for images of another number of channels; the network itself if it has this number.

    Raises:
      UserError: the network has a first layer that cannot be adapted.
    """
    before = network.model.in_channels
    if in_channels == before:
        return network
    model = network.model.copy_and_resolve_references()
    model.in_channels = in_channels
    for field in ("input_mean", "input_std"):
        model[field] = tuple(_repeat(np.array(network.model[field]), in_channels).tolist())
    shapes = variable_shapes(model, network.label_set and network.label_set.num_classes)
    flat = traverse_util.flatten_dict(network.variables, sep="/")
    adapted = {path: _adapt(path, value, shapes[path], before, in_channels) for path, value in flat.items()}
    line = f"adapted the first convolution from {before} to {in_channels} channels"
    return dataclasses.replace(
        network, model=model, variables=traverse_util.unflatten_dict(adapted, sep="/"), report=(*network.report, line)
    )


def changes_of(network: PretrainedNetwork, model: ConfigDict) -> str:
    """Describes what `with_channels` changes for a model, for a log line; empty if nothing."""
    if network.model.in_channels == model.in_channels:
        return ""
    return f"; its first convolution is adapted from {network.model.in_channels} to {model.in_channels} channels"


def _adapt(path: str, value: Any, shape: tuple[int, ...], before: int, now: int) -> Any:
    if np.shape(value) == shape:
        return value
    if np.shape(value)[-2:-1] != (before,) or np.shape(value)[:-2] + (now,) + np.shape(value)[-1:] != shape:
        raise UserError(f"{path} has shape {np.shape(value)}, which cannot be adapted to {now} channels")
    kernel = np.asarray(value)
    if now == 1:
        return kernel.sum(axis=-2, keepdims=True)
    return kernel[..., np.arange(now) % before, :] * np.float32(before / now)


def _repeat(values: np.ndarray, count: int) -> np.ndarray:
    return values.mean(keepdims=True) if count == 1 else values[np.arange(count) % len(values)]
