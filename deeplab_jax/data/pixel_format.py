"""The format of the images of a data set: 8-bit RGB, or channels and values of their own.

By default every image becomes 8-bit RGB, see `pixel_values`. A data set can instead keep its channels and its bit depth
(`deeplab-jax data prepare --channels 5`). Then one rule holds for all of its images: the number of channels, the dtype,
and `value_range`, the values that a network sees as 0 and 255. Values are stored and travel to the device as they are;
the network scales them, so the rule is part of `config.model`, and of everything that is saved or exported from it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from deeplab_jax.config import FIELDS
from deeplab_jax.data.pixel_values import ValueRange, scale_to_8_bits
from deeplab_jax.errors import UserError

#: The dtypes that images are stored in. Other integers and floats become float32.
DTYPES = ("uint8", "uint16", "float32")
#: The largest number of channels.
MOST_CHANNELS = 16

_RGB_RANGE = (0, 255)
_FOREIGN = 4  # values that exceed a range, or cannot fill it, by this factor are of another unit
_MOST_CHOSEN = 100  # nobody chooses a range that is wider by this factor than the values

# Config fields of transforms that take 8-bit RGB, by group, with the value that turns each off.
_COLOR_TRANSFORMS = {
    "data": {"color_jitter": 0.0, "photometric_distortion": False},
    "unlabeled": {"photometric_distortion": False, "grayscale": 0.0},
}


@dataclasses.dataclass(frozen=True)
class PixelFormat:
    """The rule for all images of a data set. The default is 8-bit RGB.

    Attributes:
      channels: number of channels.
      dtype: dtype of the values, one of `DTYPES`.
      value_range: the values that a network sees as 0 and 255.
      mean: mean of each channel in the training images, in the data set's own values; empty if unknown.
      std: standard deviation of each channel, in the same values.
    """

    channels: int = 3
    dtype: str = "uint8"
    value_range: ValueRange = _RGB_RANGE
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self):
        if not 1 <= self.channels <= MOST_CHANNELS or self.dtype not in DTYPES:
            raise UserError(
                f"images of {self.channels} channels of {self.dtype} are not supported; 1 to {MOST_CHANNELS} channels "
                f"of {', '.join(DTYPES[:-1])} or {DTYPES[-1]} are"
            )
        if len(self.value_range) != 2 or not self.value_range[0] < self.value_range[1]:
            raise UserError(f"value_range={self.value_range} must be two increasing numbers")

    @property
    def is_rgb(self) -> bool:
        """Whether images are ordinary ones: three channels of 0 to 255, which are stored as JPEG or PNG."""
        return self.channels == 3 and self.dtype == "uint8" and tuple(self.value_range) == _RGB_RANGE

    def __str__(self) -> str:
        low, high = self.value_range
        plural = "" if self.channels == 1 else "s"
        return f"{self.channels} channel{plural} of {self.dtype} with values from {low:g} to {high:g}"

    def to_json(self) -> dict[str, Any]:
        """The format as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PixelFormat":
        """The format of the values that `to_json` returned.

        Raises:
          UserError: a value is not legal.
          KeyError, TypeError, ValueError: the values are damaged.
        """
        low, high = (float(bound) for bound in values["value_range"])
        statistics = {name: tuple(float(value) for value in values[name]) for name in ("mean", "std")}
        return cls(int(values["channels"]), str(values["dtype"]), (low, high), **statistics)


#: Three channels of 0 to 255.
RGB = PixelFormat()


def pixels_of(source: Any) -> PixelFormat:
    """The format of a source's images: its attribute `pixels`, or 8-bit RGB without one."""
    return getattr(source, "pixels", RGB)


def pixels_of_model(model: Any) -> PixelFormat:
    """The format of the images that a network takes. Its dtype is "uint8" for the range 0-255, and unknown otherwise.

    Args:
      model: a network, or the `model` group of a config.
    """
    value_range = tuple(model.value_range)
    return PixelFormat(model.in_channels, "uint8" if value_range == _RGB_RANGE else "float32", value_range)


def fit_model(model: ConfigDict, pixels: PixelFormat, name: str) -> None:
    """Sets the fields of `config.model` that depend on the data set, unless the config sets them itself.

    These are `in_channels` and `value_range` and, for another number of channels than three, `input_mean` and
    `input_std`, which become the data set's own.

    Args:
      model: the `model` group of a config; changed in place.
      pixels: the format of the data set.
      name: name of the data set, for messages.

    Raises:
      UserError: the config says another number of channels, or the mean of the channels is not known.
    """
    defaults = {field: FIELDS["model"][field].default for field in ("in_channels", "value_range", "input_mean")}
    if model.in_channels == defaults["in_channels"]:
        model.in_channels = pixels.channels
    if model.in_channels != pixels.channels:
        raise UserError(
            f"model.in_channels={model.in_channels}, but the images of {name} have {pixels.channels}; leave it out"
        )
    if tuple(model.value_range) == defaults["value_range"]:
        model.value_range = tuple(pixels.value_range)
    if pixels.channels == 3 or len(model.input_mean) == pixels.channels:
        return
    if len(pixels.mean) != pixels.channels:
        raise UserError(
            f"model.input_mean and model.input_std are for {len(model.input_mean)} channels, but the images of {name} "
            f"have {pixels.channels}; set one value per channel"
        )
    low, high = pixels.value_range
    model.input_mean = tuple(round((value - low) * 255 / (high - low), 3) for value in pixels.mean)
    model.input_std = tuple(round(value * 255 / (high - low), 3) or 1.0 for value in pixels.std)


def check_model(model: Any, pixels: PixelFormat, name: str) -> None:
    """Checks that a network takes the images of a data set.

    Args:
      model: a network, or the `model` group of a config.
      pixels: the format of the data set.
      name: name of the data set, for messages.

    Raises:
      UserError: the number of channels differs, or the values are of another unit.
    """
    if model.in_channels != pixels.channels:
        raise UserError(
            f"the network takes images of {model.in_channels} channels, but those of {name} have {pixels.channels}; "
            "prepare the data set with the channels of the network (data prepare --channels)"
        )
    (low, high), (other_low, other_high) = model.value_range, pixels.value_range
    brightest = max(pixels.mean, default=other_low)
    # The ranges can differ: a config may set another one than that of the data set.
    if (
        (pixels.dtype == "uint8" and high > _FOREIGN * 255)
        or brightest > low + _FOREIGN * (high - low)
        or other_high - other_low < (high - low) / _MOST_CHOSEN
    ):
        raise UserError(
            f"the network takes values from {low:g} to {high:g}, but those of {name} are {other_low:g} to "
            f"{other_high:g}; prepare the data set with the values of the network"
        )


def check_augmentation(config: ConfigDict, pixels: PixelFormat, name: str) -> None:
    """Checks that the training transforms of a config work on the images of a data set.

    Args:
      config: a whole config. Its group `unlabeled` counts if it names a split.
      pixels: the format of the data set.
      name: name of the data set, for messages.

    Raises:
      UserError: colors are to be changed in images that are not 8-bit RGB.
    """
    if pixels.is_rgb:
        return
    for group, fields in _COLOR_TRANSFORMS.items():
        for field, off in fields.items():
            if config[group][field] and (group == "data" or config.unlabeled.split is not None):
                raise UserError(
                    f"{group}.{field}={config[group][field]} changes the colors of 8-bit RGB, but {name} has {pixels}; "
                    f"set --config.{group}.{field}={off}"
                )


def check_display(data: ConfigDict, pixels: PixelFormat) -> None:
    """Checks `data.display_channels` before any work: the images of a data set are drawn at the end.

    Raises:
      UserError: a channel does not exist.
    """
    _drawn_channels(pixels.channels, data.display_channels)


def check_image(image: np.ndarray, name: object, pixels: PixelFormat) -> None:
    """Checks the channels of an image that a network is to predict, and that its values are of the network's unit.

    Raises:
      UserError: they are not.
    """
    if image.ndim != 3 or image.shape[2] != pixels.channels or not image.size:
        raise UserError(f"{name} has the shape {image.shape}, but the network takes (height, width, {pixels.channels})")
    low, high = pixels.value_range
    largest = float(image.max())
    of_8_bits = image.dtype == np.uint8 and high > _FOREIGN * 255
    if of_8_bits or largest > low + _FOREIGN * (high - low):
        found = "8 bits per channel" if of_8_bits else f"values up to {largest:g}"
        raise UserError(
            f"{name} has {found}, but the network takes values from {low:g} to {high:g}; pass the original image"
        )


def to_rgb(
    image: np.ndarray, value_range: Sequence[int | float] = _RGB_RANGE, channels: Sequence[int] = ()
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draws an image as 8-bit RGB, for people.

    Args:
      image: (height, width, channels) of any dtype.
      value_range: the values that become black and white.
      channels: the channels to draw as red, green and blue, counted from 0. Default: the first three, or the first one
        as gray if there are fewer.

    Raises:
      UserError: a channel does not exist.
    """
    count = image.shape[2]
    chosen = _drawn_channels(count, channels)
    if image.dtype == np.uint8 and tuple(value_range) == _RGB_RANGE:
        return image if chosen == (0, 1, 2) and count == 3 else np.ascontiguousarray(image[..., list(chosen)])
    return scale_to_8_bits(image[..., list(chosen)], *value_range)


def _drawn_channels(count: int, channels: Sequence[int]) -> tuple[int, ...]:
    """Returns the channels to draw as red, green and blue, of `count`. See `to_rgb`."""
    chosen = tuple(channels) or ((0, 1, 2) if count >= 3 else (0, 0, 0))
    if len(chosen) != 3 or not all(0 <= channel < count for channel in chosen):
        raise UserError(
            f"data.display_channels={chosen} must be three channels of 0 to {count - 1}: red, green and blue"
        )
    return chosen
