"""Joint transforms of an image and its label map: images bilinear, labels nearest, from one random draw."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from deeplab_jax.labels import IGNORE_LABEL

ImageArray = UInt8[np.ndarray, "height width 3"]
LabelMap = UInt8[np.ndarray, "height width"]
NewImageArray = UInt8[np.ndarray, "out_height out_width 3"]
NewLabelMap = UInt8[np.ndarray, "out_height out_width"]


def resize_image(image: ImageArray, size: Sequence[int], *, antialias: bool = False) -> NewImageArray:
    """Half-pixel bilinear, to (height, width); `antialias` widens the triangle where it shrinks, as Pillow does."""
    if antialias:
        return np.asarray(Image.fromarray(image).resize((int(size[1]), int(size[0])), Image.Resampling.BILINEAR))
    return cv2.resize(image, (int(size[1]), int(size[0])), interpolation=cv2.INTER_LINEAR)


def resize_label_map(label_map: LabelMap, size: Sequence[int]) -> NewLabelMap:
    """Nearest at half-pixel centers, the same geometry as `resize_image`, to (height, width)."""
    return cv2.resize(label_map, (int(size[1]), int(size[0])), interpolation=cv2.INTER_NEAREST_EXACT)


def pad_to(pixels: np.ndarray, size: Sequence[int], value: Sequence[int] | int) -> np.ndarray:
    """Extends below and to the right to at least (height, width) with one value or color."""
    below, right = (max(wanted - had, 0) for wanted, had in zip(size, pixels.shape, strict=False))
    if not below and not right:
        return pixels
    padded = np.empty((pixels.shape[0] + below, pixels.shape[1] + right, *pixels.shape[2:]), pixels.dtype)
    padded[...] = value
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return padded


def random_scale_crop(
    image: ImageArray,
    label_map: LabelMap,
    size: Sequence[int],
    rng: np.random.Generator,
    *,
    scale_range: Sequence[int | float],
    scale_step: int | float,
    pad_color: Sequence[int],
) -> tuple[NewImageArray, NewLabelMap]:
    """Scales by a random factor, pads to at least `size`, cuts a random window (DeepLabv3, section 4.1).

    Args:
      image: the image.
      label_map: its labels.
      size: height and width of the window.
      rng: of this example.
      scale_range: least and largest factor.
      scale_step: factors are this far apart (research/deeplab: 0.25); 0 draws from the whole range.
      pad_color: RGB around the image; labels are void there.
    """
    low, high = scale_range
    if scale_step:
        factor = low + scale_step * rng.integers(0, round((high - low) / scale_step) + 1)
    else:
        factor = rng.uniform(low, high)
    scaled = [max(1, round(extent * factor)) for extent in label_map.shape]
    image = pad_to(resize_image(image, scaled), size, pad_color)
    label_map = pad_to(resize_label_map(label_map, scaled), size, IGNORE_LABEL)
    top, left = (int(rng.integers(0, had - wanted + 1)) for had, wanted in zip(label_map.shape, size, strict=True))
    window = np.s_[top : top + size[0], left : left + size[1]]
    return image[window], label_map[window]


def random_box(
    image: ImageArray, label_map: LabelMap, rng: np.random.Generator, *, scale_range: Sequence[int | float]
) -> tuple[NewImageArray, NewLabelMap]:
    """Cuts a random box, which squeezed varies in scale and shape without padding (arXiv 1409.4842, section 6).

    Args:
      image: the image.
      label_map: its labels.
      rng: of this example.
      scale_range: least and largest share of the image's height, and, drawn apart, of its width; at most 1.
    """
    box = []
    for extent in label_map.shape:
        length = max(1, round(extent * rng.uniform(*scale_range)))
        start = int(rng.integers(0, extent - length + 1))
        box.append(slice(start, start + length))
    return image[tuple(box)], label_map[tuple(box)]


def random_flip(
    image: ImageArray, label_map: LabelMap, rng: np.random.Generator, *, directions: str
) -> tuple[ImageArray, LabelMap]:
    """Mirrors with probability one half in each of the directions.

    Args:
      image: the image.
      label_map: its labels.
      rng: of this example.
      directions: `none`, `horizontal` (left and right change) or `horizontal_and_vertical`.
    """
    # cv2 mirrors five times as fast as numpy copies a view with a negative stride.
    if directions != "none" and rng.random() < 0.5:
        image, label_map = cv2.flip(image, 1), cv2.flip(label_map, 1)
    if directions == "horizontal_and_vertical" and rng.random() < 0.5:
        image, label_map = cv2.flip(image, 0), cv2.flip(label_map, 0)
    return image, label_map


def random_color(image: ImageArray, rng: np.random.Generator, *, strength: float) -> ImageArray:
    """Brightness, contrast (about the mean gray) and saturation, each by a factor of 1 - strength to 1 + strength.

    Args:
      image: the image.
      rng: of this example.
      strength: below 1.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    mean_gray = float(gray.mean())
    # saturation * image + (1 - saturation) * gray, then contrast * (x - mean) + mean, then brightness * x, in one pass
    factor = brightness * contrast
    offset = brightness * (1 - contrast) * mean_gray
    gray = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor * saturation, gray, factor * (1 - saturation), offset)


def paste(
    image: ImageArray, label_map: LabelMap, other: ImageArray, other_label_map: LabelMap, *, classes: Sequence[int]
) -> tuple[ImageArray, LabelMap]:
    """Lays the pixels of some classes of another image over this one, at the same places (arXiv 2012.07177).

    Args:
      image: the image.
      label_map: its labels.
      other: the image from which is pasted, of the same size.
      other_label_map: its labels.
      classes: ids of what is pasted.
    """
    pasted = np.isin(other_label_map, classes)
    return np.where(pasted[..., None], other, image), np.where(pasted, other_label_map, label_map)


def augment(
    image: ImageArray, label_map: LabelMap, rng: np.random.Generator, data: ConfigDict, *, pad_color: Sequence[int]
) -> tuple[NewImageArray, NewLabelMap]:
    """The training transform of `config.data`: to `image_size` as `data.resize` says, flips, colors."""
    if data.resize == "scale_crop":
        image, label_map = random_scale_crop(
            image,
            label_map,
            data.image_size,
            rng,
            scale_range=data.scale_range,
            scale_step=data.scale_step,
            pad_color=pad_color,
        )
    else:
        if data.resize == "resized_crop":
            image, label_map = random_box(image, label_map, rng, scale_range=data.scale_range)
        image = resize_image(image, data.image_size, antialias=data.antialias)
        label_map = resize_label_map(label_map, data.image_size)
    image, label_map = random_flip(image, label_map, rng, directions=data.random_flip)
    if data.color_jitter:
        image = random_color(image, rng, strength=data.color_jitter)
    return image, label_map
