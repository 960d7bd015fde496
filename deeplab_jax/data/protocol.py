"""Evaluation protocols: what the network sees of an image, and at which size it is scored.

Each value of `config.eval.protocol` is one class here. The evaluation pipeline, the evaluation step and the predictor
ask the protocol; nothing else compares its name.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.config import check_fields, check_sizes, check_value_range
from deeplab_jax.data import transforms
from deeplab_jax.data.eval_protocol import EvalProtocol, Size, bucket
from deeplab_jax.data.view_protocols import KeepRatio, Windows
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL

_ROUND_TO = 32  # default canvases are a multiple of it plus 1: sizes of k * stride + 1 keep atrous features aligned


class CanvasProtocol(EvalProtocol):
    """A protocol under which all images of a split have one size, that of the network's input."""

    @abc.abstractmethod
    def batch_sizes(self, largest_size: Callable[[], Size]) -> tuple[Size, Size]:
        """Returns (height, width) of the images and of the labels in an evaluation batch.

        Args:
          largest_size: returns a (height, width) that holds every image of the split. It may read all of them, so it is
            called only if needed.
        """

    @abc.abstractmethod
    def shape_example(
        self, image: np.ndarray, label: np.ndarray, *, image_size: Size, label_size: Size, name: str
    ) -> tuple[np.ndarray, np.ndarray, Size]:
        """Brings an image and its label to the sizes of the batch.

        Args:
          image: (height, width, channels).
          label: uint8 (height, width).
          image_size: (height, width) of images in the batch, see `batch_sizes`.
          label_size: (height, width) of labels in the batch.
          name: name of the example, for errors.

        Returns:
          The image, the label (ignore label outside the scored pixels) and (height, width) of the scored pixels, which
          are at the top left of the label.

        Raises:
          UserError: an image larger than `eval.image_size`.
        """

    def resize_logits(self, logits: Any, sizes: Any, canvas: Size) -> Any:
        """Resizes logits so that their pixels correspond to those of the labels. Traceable.

        Args:
          logits: float (batch, height, width, classes) at the size of the network's input, which may be a scaled view
            of the batch's images.
          sizes: int (batch, 2), height and width of each image's scored pixels.
          canvas: (height, width) of the labels in the batch.

        Returns:
          Float (batch, canvas height, canvas width, classes).
        """
        import jax.numpy as jnp  # here, since data worker processes need no JAX

        from deeplab_jax import ops

        size = logits.shape[1:3]
        if size == tuple(canvas):
            return logits
        # The image fills the same part of the network's input as of the canvas.
        factors = jnp.asarray(size, logits.dtype) / jnp.asarray(canvas, logits.dtype)
        extents = sizes.astype(logits.dtype) * factors.reshape(1, 2)
        return ops.resize_to_sizes(logits, extents, sizes, canvas)


class Whole(CanvasProtocol):
    """The image at its own size, padded to `eval.image_size`; scored at its own size (the papers)."""

    size_field = "eval.image_size"

    @property
    def input_size(self) -> Size | None:
        """`eval.image_size`; None pads to the largest image of a split."""
        return self.eval_size

    def batch_sizes(self, largest_size: Callable[[], Size]) -> tuple[Size, Size]:
        """Images and labels have the same size: `eval.image_size`, or a size that holds the largest image."""
        if self.eval_size is not None:
            return self.eval_size, self.eval_size
        height, width = (math.ceil(extent / _ROUND_TO) * _ROUND_TO + 1 for extent in largest_size())
        return (height, width), (height, width)

    def shape_example(self, image, label, *, image_size, label_size, name):
        """Pads the image and the label."""
        height, width = label.shape
        if height > label_size[0] or width > label_size[1]:
            raise UserError(
                f"image {name} is {height}x{width} (height x width), larger than eval.image_size={label_size}; raise it"
            )
        image = transforms.pad_to(image, image_size, self.pad_color)
        return image, transforms.pad_to(label, label_size, IGNORE_LABEL), (height, width)

    def fit(self, image: np.ndarray) -> tuple[np.ndarray, Size]:
        """Pads the image to `eval.image_size` after shrinking it if needed, or else to the next `bucket`, plus 1."""
        height, width = image.shape[:2]
        if self.eval_size is None:
            padded = (bucket(height) + 1, bucket(width) + 1)
            return transforms.pad_to(image, padded, self.pad_color), (height, width)
        factor = min(1.0, self.eval_size[0] / height, self.eval_size[1] / width)
        if factor < 1:
            height, width = max(1, math.floor(height * factor)), max(1, math.floor(width * factor))
            image = transforms.resize_image(image, (height, width))
        return transforms.pad_to(image, self.eval_size, self.pad_color), (height, width)

    def with_input_size(self, size: Sequence[int]) -> "Whole":
        """Returns this protocol with another `eval.image_size`."""
        return dataclasses.replace(self, eval_size=tuple(size))


class Squeeze(CanvasProtocol):
    """The image resized to `data.image_size`, logits resized back; scored at the image's own size."""

    needs_train_size = True
    can_split_rows = False  # every image's logits are resized to a size of their own

    def batch_sizes(self, largest_size: Callable[[], Size]) -> tuple[Size, Size]:
        """Images have `data.image_size`; labels are padded to the largest image."""
        return self.train_size, largest_size()

    def shape_example(self, image, label, *, image_size, label_size, name):
        """Resizes the image and pads the label."""
        image = transforms.resize_image(image, image_size, antialias=self.antialias)
        return image, transforms.pad_to(label, label_size, IGNORE_LABEL), label.shape

    def resize_logits(self, logits, sizes, canvas):
        """Resizes the logits of each image to the image's own size."""
        import jax.numpy as jnp

        from deeplab_jax import ops

        extents = jnp.broadcast_to(jnp.asarray(logits.shape[1:3], jnp.int32).reshape(1, 2), sizes.shape)
        return ops.resize_to_sizes(logits, extents, sizes, canvas)


class Guide(CanvasProtocol):
    """The image and its label resized to `data.image_size` and scored there (the KerasCV guide)."""

    needs_train_size = True

    def batch_sizes(self, largest_size: Callable[[], Size]) -> tuple[Size, Size]:
        """Images and labels have `data.image_size`."""
        return self.train_size, self.train_size

    def shape_example(self, image, label, *, image_size, label_size, name):
        """Resizes the image, and the label to the nearest class ids."""
        image = transforms.resize_image(image, image_size, antialias=self.antialias)
        return image, transforms.resize_label(label, label_size), label_size


# The values of `config.eval.protocol`.
_PROTOCOLS: dict[str, type[EvalProtocol]] = {
    "whole": Whole, "squeeze": Squeeze, "guide": Guide, "keep_ratio": KeepRatio, "windows": Windows
}  # fmt: skip


def protocol_for(config: ConfigDict) -> EvalProtocol:
    """Returns the evaluation protocol of a whole config.

    Raises:
      UserError: a protocol that does not exist, one that needs `data.image_size`, which is not set, or invalid sizes.
    """
    check_sizes(config)
    train_size, eval_size, protocol = config.data.image_size, config.eval.image_size, _protocol_class(config)
    if train_size is None and protocol.needs_train_size:
        raise UserError(f"eval.protocol={config.eval.protocol} needs data.image_size; set it")
    return protocol(
        train_size=None if train_size is None else tuple(train_size),
        eval_size=None if eval_size is None else tuple(eval_size),
        pad_color=pad_color(config.model),
        antialias=config.data.antialias,
        **protocol.own_values(config),
    )


def describe_protocol(config: ConfigDict) -> tuple[str, ...]:
    """Describes how a whole config evaluates images: protocol and size, scales, flips.

    Raises:
      UserError: see `protocol_for`.
    """
    size = protocol_for(config).saved_size
    scales = [f"{scale:g}" for scale in config.eval.scales]
    return (
        f"protocol {config.eval.protocol} at {'x'.join(map(str, size)) if size else 'the size of the images'}",
        "one scale" if scales == ["1"] else f"scales {', '.join(scales)}",
        *(["flipped too"] if config.eval.flip else []),
    )


def set_input_size(config: ConfigDict, size: Sequence[int] | None) -> None:
    """Sets the field of a whole config that gives the size of the network's input under its protocol."""
    group, field = _protocol_class(config).size_field.split(".")
    config[group][field] = None if size is None else tuple(size)


def _protocol_class(config: ConfigDict) -> type[EvalProtocol]:
    check_fields("eval", config.eval)
    return _PROTOCOLS[config.eval.protocol]


def pad_color(model: ConfigDict) -> tuple[int | float, ...]:
    """Returns the color that normalizes to about zero, which padding is filled with (DeepLabv3's mean pixel).

    Args:
      model: the `model` group of a config.

    Returns:
      A value per channel in the images' own values; integers unless these span less than 255.

    Raises:
      UserError: `value_range` is not legal.
    """
    check_value_range(model.value_range)
    low, high = model.value_range
    values = [low + value * (high - low) / 255 for value in model.input_mean]
    return tuple(round(value) if high - low >= 255 else value for value in values)
