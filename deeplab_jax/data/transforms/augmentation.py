"""The transforms of a training example, in order."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.data.transforms import color, geometry
from deeplab_jax.data.transforms.geometry import ImageArray, LabelArray, NewImageArray, NewLabelArray
from deeplab_jax.labels import IGNORE_LABEL


def augment(
    image: ImageArray,
    label: LabelArray,
    rng: np.random.Generator,
    data: ConfigDict,
    *,
    pad_color: Sequence[int | float],
) -> tuple[NewImageArray, NewLabelArray]:
    """Applies the training transforms of `config.data`, except your own function and mixing.

    The order: rotation, resizing and cropping, photometric distortion, blur, padding to `image_size`, flips, color
    jitter. A transform that is off draws no random numbers.

    Args:
      image: the image.
      label: its label.
      rng: random generator of this example.
      data: the `data` group of a config.
      pad_color: RGB color of padding, where labels are the ignore label.
    """
    if data.random_rotation:
        image, label = geometry.random_rotation(image, label, rng, degrees=data.random_rotation, pad_color=pad_color)
    image, label = _resize(image, label, rng, data)
    if data.photometric_distortion:
        image = color.photometric_distortion(image, rng)
    if data.random_blur:
        image = color.random_blur(image, rng, sigma=data.random_blur)
    # After the distortion, so that padding keeps its color.
    image = geometry.pad_to(image, data.image_size, pad_color)
    label = geometry.pad_to(label, data.image_size, IGNORE_LABEL)
    image, label = geometry.random_flip(image, label, rng, directions=data.random_flip)
    if data.color_jitter:
        image = color.random_color(image, rng, strength=data.color_jitter)
    return image, label


def _resize(
    image: ImageArray, label: LabelArray, rng: np.random.Generator, data: ConfigDict
) -> tuple[NewImageArray, NewLabelArray]:
    """Resizes to `image_size`, or with `scale_crop` to at most this size."""
    if data.resize == "scale_crop":
        image, label = geometry.random_scale(
            image,
            label,
            rng,
            scale_range=data.scale_range,
            scale_step=data.scale_step,
            short_side=data.short_side,
            max_long_side=data.max_long_side,
        )
        return geometry.random_crop(image, label, data.image_size, rng, cat_max_ratio=data.cat_max_ratio)
    if data.resize == "resized_crop":
        image, label = geometry.random_box(image, label, rng, scale_range=data.scale_range)
    return (
        geometry.resize_image(image, data.image_size, antialias=data.antialias),
        geometry.resize_label(label, data.image_size),
    )
