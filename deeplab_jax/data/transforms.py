"""Joint transforms of an image and its label. One random draw moves both; images are resized bilinearly, labels by
nearest neighbor.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from ml_collections import ConfigDict
from PIL import Image

from deeplab_jax.labels import IGNORE_LABEL

# uint8 RGB, or the data set's own channels of uint8, uint16 or float32.
ImageArray = Shaped[np.ndarray, "height width channels"]
LabelArray = UInt8[np.ndarray, "height width"]
NewImageArray = Shaped[np.ndarray, "out_height out_width channels"]
NewLabelArray = UInt8[np.ndarray, "out_height out_width"]


def resize_image(image: ImageArray, size: Sequence[int], *, antialias: bool = False) -> NewImageArray:
    """Resizes an image bilinearly with half-pixel centers.

    Args:
      image: the image.
      size: the new (height, width).
      antialias: widen the triangle filter when shrinking, as Pillow does.
    """
    target = (int(size[1]), int(size[0]))
    if antialias and image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BILINEAR))
    if antialias:
        return np.stack([_resize_channel(image[..., i], target) for i in range(image.shape[2])], axis=-1)
    return _with_channels(cv2.resize(image, target, interpolation=cv2.INTER_LINEAR))


def _resize_channel(channel: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """Resizes one channel to (width, height) with Pillow, which computes 16 bits in float32."""
    plane = Image.fromarray(channel if channel.dtype == np.uint8 else channel.astype(np.float32))
    resized = np.asarray(plane.resize(target, Image.Resampling.BILINEAR))
    return resized if channel.dtype.kind == "f" else np.rint(resized).astype(channel.dtype)


def _with_channels(image: np.ndarray) -> np.ndarray:
    """Restores the last axis, which cv2 drops from images of one channel."""
    return image[..., None] if image.ndim == 2 else image


def resize_label(label: LabelArray, size: Sequence[int]) -> NewLabelArray:
    """Resizes a label to (height, width) by nearest neighbor, with the half-pixel centers of `resize_image`."""
    return cv2.resize(label, (int(size[1]), int(size[0])), interpolation=cv2.INTER_NEAREST_EXACT)


def pad_to(pixels: np.ndarray, size: Sequence[int], value: Sequence[int | float] | int) -> np.ndarray:
    """Pads at the bottom and on the right to at least (height, width) with one value or color."""
    below, right = (max(wanted - extent, 0) for wanted, extent in zip(size, pixels.shape, strict=False))
    if not below and not right:
        return pixels
    padded = np.empty((pixels.shape[0] + below, pixels.shape[1] + right, *pixels.shape[2:]), pixels.dtype)
    padded[...] = value
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return padded


def random_scale_crop(
    image: ImageArray,
    label: LabelArray,
    size: Sequence[int],
    rng: np.random.Generator,
    *,
    scale_range: Sequence[int | float],
    scale_step: int | float,
    pad_color: Sequence[int | float],
) -> tuple[NewImageArray, NewLabelArray]:
    """Scales by a random factor, pads to at least `size`, and takes a random crop (DeepLabv3, section 4.1).

    Args:
      image: the image.
      label: its label.
      size: (height, width) of the crop.
      rng: random generator of this example.
      scale_range: smallest and largest factor.
      scale_step: step between factors (research/deeplab: 0.25); 0 draws from the whole range.
      pad_color: RGB color of the padding, where labels are the ignore label.
    """
    low, high = scale_range
    if scale_step:
        factor = low + scale_step * rng.integers(0, round((high - low) / scale_step) + 1)
    else:
        factor = rng.uniform(low, high)
    scaled = [max(1, round(extent * factor)) for extent in label.shape]
    image = pad_to(resize_image(image, scaled), size, pad_color)
    label = pad_to(resize_label(label, scaled), size, IGNORE_LABEL)
    top, left = (int(rng.integers(0, extent - wanted + 1)) for extent, wanted in zip(label.shape, size, strict=True))
    crop = np.s_[top : top + size[0], left : left + size[1]]
    return image[crop], label[crop]


def random_box(
    image: ImageArray, label: LabelArray, rng: np.random.Generator, *, scale_range: Sequence[int | float]
) -> tuple[NewImageArray, NewLabelArray]:
    """Cuts out a random box. Resized to a fixed size, it varies scale and aspect ratio (arXiv 1409.4842, section 6).

    Args:
      image: the image.
      label: its label.
      rng: random generator of this example.
      scale_range: smallest and largest fraction of the image's height; the width is drawn separately. At most 1.
    """
    box = []
    for extent in label.shape:
        length = max(1, round(extent * rng.uniform(*scale_range)))
        start = int(rng.integers(0, extent - length + 1))
        box.append(slice(start, start + length))
    return image[tuple(box)], label[tuple(box)]


def random_flip(
    image: ImageArray, label: LabelArray, rng: np.random.Generator, *, directions: str
) -> tuple[ImageArray, LabelArray]:
    """Flips with probability one half in each direction.

    Args:
      image: the image.
      label: its label.
      rng: random generator of this example.
      directions: "none", "horizontal" (swaps left and right) or "horizontal_and_vertical".
    """
    # cv2 flips five times as fast as numpy copies a view with a negative stride.
    if directions != "none" and rng.random() < 0.5:
        image, label = _with_channels(cv2.flip(image, 1)), cv2.flip(label, 1)
    if directions == "horizontal_and_vertical" and rng.random() < 0.5:
        image, label = _with_channels(cv2.flip(image, 0)), cv2.flip(label, 0)
    return image, label


def random_color(image: ImageArray, rng: np.random.Generator, *, strength: float) -> ImageArray:
    """Changes brightness, contrast (around the mean gray) and saturation by random factors.

    Args:
      image: the image.
      rng: random generator of this example.
      strength: each factor is drawn from 1 - strength to 1 + strength; below 1.
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
    image: ImageArray, label: LabelArray, other: ImageArray, other_label: LabelArray, *, classes: Sequence[int]
) -> tuple[ImageArray, LabelArray]:
    """Copies the pixels of some classes from another image to the same positions in this one (arXiv 2012.07177).

    Args:
      image: the image.
      label: its label.
      other: the image to copy from, of the same size.
      other_label: its label.
      classes: class ids to copy.
    """
    pasted = np.isin(other_label, classes)
    return np.where(pasted[..., None], other, image), np.where(pasted, other_label, label)


def augment(
    image: ImageArray,
    label: LabelArray,
    rng: np.random.Generator,
    data: ConfigDict,
    *,
    pad_color: Sequence[int | float],
) -> tuple[NewImageArray, NewLabelArray]:
    """Applies the training transforms of `config.data`: resizing to `image_size`, flips, colors."""
    if data.resize == "scale_crop":
        image, label = random_scale_crop(
            image,
            label,
            data.image_size,
            rng,
            scale_range=data.scale_range,
            scale_step=data.scale_step,
            pad_color=pad_color,
        )
    else:
        if data.resize == "resized_crop":
            image, label = random_box(image, label, rng, scale_range=data.scale_range)
        image = resize_image(image, data.image_size, antialias=data.antialias)
        label = resize_label(label, data.image_size)
    image, label = random_flip(image, label, rng, directions=data.random_flip)
    if data.color_jitter:
        image = random_color(image, rng, strength=data.color_jitter)
    return image, label
