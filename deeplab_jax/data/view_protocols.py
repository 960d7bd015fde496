"""Evaluation protocols that resize each image to sizes of its own: one view of it per scale, without padding."""

import abc
import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.config import ranges
from deeplab_jax.data import transforms
from deeplab_jax.data.eval_protocol import EvalProtocol, Size, bucket
from deeplab_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ViewProtocol(EvalProtocol):
    """A protocol that makes a view of each image for every scale, from the image at its own size.

    The views of one image may have other sizes than those of the next, so only images of the same `group` share a
    batch. Prediction and evaluation read the same views.

    Attributes:
      scale_to: (shorter side, longer side) that each image is scaled to fit into, `eval.scale_to`; None keeps its size.
    """

    scale_to: Size | None = None

    can_split_rows = False

    @property
    def input_size(self) -> Size | None:
        """None: it depends on the images."""
        return None

    def view_size(self, size: Size, scale: int | float = 1) -> Size:
        """Returns (height, width) of the view of an image.

        Args:
          size: (height, width) of the image.
          scale: one of `eval.scales`.
        """
        factor = scale
        if self.scale_to is not None:
            shorter, longer = (int(side * scale) for side in self.scale_to)
            factor = min(shorter / min(size), longer / max(size))
        height, width = (max(1, math.floor(extent * factor + 0.5)) for extent in size)
        return height, width

    def keeps_size(self, scale: int | float) -> bool:
        """Whether a view always has the size of its image."""
        return scale == 1 and self.scale_to is None

    def make_view(self, image: np.ndarray, scale: int | float = 1) -> np.ndarray:
        """Resizes an image to its `view_size`."""
        return transforms.resize_image(image, self.view_size(image.shape[:2], scale), antialias=self.antialias)

    def canvas(self, size: Size) -> Size:
        """Returns (height, width) that one view is padded to for prediction, at the bottom and on the right."""
        return size

    def view_scales(self, scales: Sequence[int | float]) -> tuple[int | float, ...]:
        """Returns the scales of the views that the pipeline makes, of those of `eval.scales`."""
        return tuple(scales)

    @abc.abstractmethod
    def group(self, size: Size, scales: Sequence[int | float]) -> Hashable:
        """Returns a key that the images of a batch have in common.

        Args:
          size: (height, width) of an image.
          scales: the scales of its views.
        """

    def fit(self, image: np.ndarray, scale: int | float = 1) -> tuple[np.ndarray, Size]:
        """Makes a view of one image, on its canvas."""
        view = self.make_view(image, scale)
        return transforms.pad_to(view, self.canvas(view.shape[:2]), self.pad_color), view.shape[:2]

    @classmethod
    def own_values(cls, config: ConfigDict) -> dict[str, Any]:
        """Returns `eval.scale_to`."""
        size = _pair(config, "scale_to", "(shorter side, longer side)")
        if size is not None and size[0] > size[1]:
            raise UserError(f"eval.scale_to={size} must be (shorter side, longer side)")
        return {"scale_to": size}


@dataclasses.dataclass(frozen=True)
class KeepRatio(ViewProtocol):
    """The image scaled to fit into `eval.scale_to`, then each side resized up to a multiple of `eval.size_multiple`.

    Logits are resized back, and scored at the image's own size. A scale of `eval.scales` multiplies `eval.scale_to`.
    With a multiple of 32, this is the evaluation of SegFormer on ADE20K ("AlignedResize"). As there, the second
    resizing starts from the result of the first.

    Attributes:
      multiple: `eval.size_multiple`.
    """

    multiple: int = 1

    size_field = "eval.scale_to"

    @property
    def saved_size(self) -> Size | None:
        """The value of `eval.scale_to`."""
        return self.scale_to

    def view_size(self, size: Size, scale: int | float = 1) -> Size:
        """Returns (height, width) of the view, both multiples of `multiple`."""
        height, width = (math.ceil(extent / self.multiple) * self.multiple for extent in super().view_size(size, scale))
        return height, width

    def make_view(self, image: np.ndarray, scale: int | float = 1) -> np.ndarray:
        """Scales an image, and then aligns its sides."""
        size = image.shape[:2]
        for target in (super().view_size(size, scale), self.view_size(size, scale)):
            if image.shape[:2] != target:
                image = transforms.resize_image(image, target, antialias=self.antialias)
        return image

    def group(self, size: Size, scales: Sequence[int | float]) -> Hashable:
        """Images whose views have the same sizes, and whose own sizes are similar."""
        return tuple(self.view_size(size, scale) for scale in scales), tuple(map(bucket, size))

    def with_input_size(self, size: Sequence[int]) -> "KeepRatio":
        """Returns this protocol with another `eval.scale_to`."""
        return dataclasses.replace(self, scale_to=(min(size), max(size)))

    @classmethod
    def own_values(cls, config: ConfigDict) -> dict[str, Any]:
        """Returns the values of `eval.scale_to`, which is needed, and `eval.size_multiple`."""
        if config.eval.scale_to is None:
            raise UserError("eval.protocol=keep_ratio needs eval.scale_to; set it, for example to (512, 2048)")
        return super().own_values(config) | {"multiple": config.eval.size_multiple}


@dataclasses.dataclass(frozen=True)
class Windows(ViewProtocol):
    """Windows that slide over the image; scored at the image's own size (MMSegmentation's mode "slide").

    Windows begin every `stride` pixels; the last one of a row or column is moved back to end with the image. An image
    smaller than a window is seen whole. Where windows overlap, the mean of their logits or probabilities counts. Each
    scale of `eval.scales` resizes the image, and windows of the same size slide over it. Blended windows are those of
    `deeplab_jax.inference.sliding_window` instead.

    Attributes:
      window: (height, width) of a window, `eval.window`.
      stride: (height, width) between windows, `eval.window_stride`.
      average: the values that are averaged, `eval.window_average`.
    """

    window: Size = (1, 1)
    stride: Size = (1, 1)
    average: str = "logits"

    size_field = "eval.window"

    @property
    def is_blended(self) -> bool:
        """Whether windows are those of `predict --window`, which sees each of them at all scales."""
        return self.average == "blended"

    def view_scales(self, scales: Sequence[int | float]) -> tuple[int | float, ...]:
        """Returns the scales, or 1 for blended windows, which are scaled themselves."""
        return (1.0,) if self.is_blended else tuple(scales)

    @property
    def saved_size(self) -> Size | None:
        """The value of `eval.window`."""
        return self.window

    def canvas(self, size: Size) -> Size:
        """Returns the size itself where it is smaller than a window, so that no window sees padding, or its bucket."""
        height, width = (
            extent if extent < side else bucket(extent) for extent, side in zip(size, self.window, strict=True)
        )
        return height, width

    def group(self, size: Size, scales: Sequence[int | float]) -> Hashable:
        """Images of similar sizes, or equal ones if they are smaller than a window."""
        return tuple(self.canvas(self.view_size(size, scale)) for scale in scales), tuple(map(bucket, size))

    def with_input_size(self, size: Sequence[int]) -> "Windows":
        """Returns this protocol with another `eval.window`, whose stride is two thirds of it."""
        window = tuple(size)
        return dataclasses.replace(self, window=window, stride=_default_stride(window))

    @classmethod
    def own_values(cls, config: ConfigDict) -> dict[str, Any]:
        """Returns the values of `eval.scale_to`, `eval.window`, `eval.window_stride` and `eval.window_average`."""
        window = _pair(config, "window", "(height, width)")
        if window is None:
            raise UserError("eval.protocol=windows needs eval.window; set it, for example to (769, 769)")
        if min(window) < config.model.output_stride:
            raise UserError(
                f"eval.window={window} must be at least the output stride {config.model.output_stride} high and wide"
            )
        stride = _pair(config, "window_stride", "(height, width)") or _default_stride(window)
        if any(step > side for step, side in zip(stride, window, strict=True)):
            raise UserError(f"eval.window_stride={stride} leaves pixels out between windows of eval.window={window}")
        average = config.eval.window_average
        for field in ("scale_to", "window_stride"):
            if average == "blended" and config.eval[field] is not None:
                raise UserError(
                    f"eval.{field} does not work with eval.window_average=blended, whose windows see the image at its "
                    "own size and overlap by a third; unset it"
                )
        return super().own_values(config) | {"window": window, "stride": stride, "average": average}


def window_count(extent: int, window: int, stride: int) -> int:
    """Returns the number of windows along an axis: as many as are needed to reach the end."""
    return math.ceil(max(extent - window, 0) / stride) + 1


def _default_stride(window: Size) -> Size:
    height, width = (max(1, round(side * 2 / 3)) for side in window)
    return height, width


def _pair(config: ConfigDict, field: str, form: str) -> Size | None:
    value = config.eval[field]
    if value is None:
        return None
    if len(value) != 2 or not all(extent in ranges.SIDE for extent in value):
        raise UserError(
            f"eval.{field}={tuple(value)} must be {form}, each at least 1 and at most {ranges.SIDE.maximum}"
        )
    return tuple(value)
