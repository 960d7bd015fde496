"""The base of all evaluation protocols."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.data import transforms

_BUCKET_STEP = 64  # sizes are rounded up to multiples of it, of more for large images
_STEPS_PER_OCTAVE = 4  # above eight times that step

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class EvalProtocol(abc.ABC):
    """How images are fed to the network and scored.

    Attributes:
      train_size: (height, width) of `data.image_size`, which protocols that resize to it need.
      eval_size: (height, width) of `eval.image_size`, or None.
      pad_color: color of padding, a value per channel.
      antialias: whether resizing averages the pixels it shrinks, `data.antialias`.
    """

    train_size: Size | None
    eval_size: Size | None = None
    pad_color: tuple[int | float, ...] = (0, 0, 0)
    antialias: bool = False

    #: The config field that sets the size of the network's input in an evaluation.
    size_field: ClassVar[str] = "data.image_size"
    #: Whether the rows of an image can be split over devices (`mesh.spatial`).
    can_split_rows: ClassVar[bool] = True
    #: Whether it resizes images to `data.image_size`.
    needs_train_size: ClassVar[bool] = False

    @property
    def input_size(self) -> Size | None:
        """(height, width) of the network's input in an evaluation; None if it depends on the images."""
        return self.train_size

    @property
    def saved_size(self) -> Size | None:
        """The value of `size_field`, which a saved network holds; None for the default."""
        return self.input_size

    @property
    def input_sizes(self) -> dict[str, Size | None]:
        """(height, width) of the network's inputs in training and evaluation, by the config field that sets them."""
        return {"data.image_size": self.train_size, self.size_field: self.input_size}

    def fit(self, image: np.ndarray) -> tuple[np.ndarray, Size]:
        """Fits one image for prediction.

        Returns:
          The network's input, (height, width, channels), and (height, width) of the image inside it, at the top left.
        """
        return transforms.resize_image(image, self.train_size, antialias=self.antialias), self.train_size

    def with_input_size(self, size: Sequence[int]) -> "EvalProtocol":
        """Returns this protocol with another (height, width) of the network's input in an evaluation."""
        return dataclasses.replace(self, train_size=tuple(size))

    @classmethod
    def own_values(cls, config: ConfigDict) -> dict[str, Any]:
        """Returns the values of this protocol's own attributes in a whole config.

        Raises:
          UserError: one is missing or not legal.
        """
        del config
        return {}


def bucket(extent: int) -> int:
    """Rounds a height or width up, so that images of many sizes share few compiled programs.

    The result is a multiple of 64 up to 512, of 128 up to 1024, of 256 up to 2048, and so on: 8 buckets up to 512 and 4
    more for every doubling. Above 256, rounding adds at most a quarter.
    """
    octave = math.ceil(math.log2(max(1, extent)))
    step = max(_BUCKET_STEP, 2**octave // (2 * _STEPS_PER_OCTAVE))
    return math.ceil(extent / step) * step
