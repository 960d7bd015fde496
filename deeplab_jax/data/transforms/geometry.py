"""Transforms of positions. One random draw moves both image and label.

Images are interpolated bilinearly. Labels take the nearest neighbor, so no new label appears.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from deeplab_jax.labels import IGNORE_LABEL

# uint8 RGB, or the data set's own channels of uint8, uint16 or float32.
ImageArray = Shaped[np.ndarray, "height width channels"]
LabelArray = UInt8[np.ndarray, "height width"]
NewImageArray = Shaped[np.ndarray, "out_height out_width channels"]
NewLabelArray = UInt8[np.ndarray, "out_height out_width"]

_MOST_CROPS = 10  # draws that can be rejected because one class covers the crop, as in MMSegmentation


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


def random_scale(
    image: ImageArray,
    label: LabelArray,
    rng: np.random.Generator,
    *,
    scale_range: Sequence[int | float],
    scale_step: int | float = 0,
    short_side: int = 0,
    max_long_side: int = 0,
) -> tuple[NewImageArray, NewLabelArray]:
    """Scales by a random factor and keeps the aspect ratio (DeepLabv3, section 4.1).

    With `short_side`, the factor is relative to the size at which the shorter side has this length, or the longer side
    `max_long_side`, whichever is smaller. This is `RandomResize(scale=(max_long_side, short_side), keep_ratio=True)` of
    MMSegmentation.

    Args:
      image: the image.
      label: its label.
      rng: random generator of this example.
      scale_range: smallest and largest factor.
      scale_step: step between factors (research/deeplab: 0.25); 0 draws from the whole range.
      short_side: length of the shorter side at factor 1; 0 keeps the size of the image.
      max_long_side: longest side at factor 1; 0 does not limit it.
    """
    low, high = scale_range
    if scale_step:
        factor = low + scale_step * rng.integers(0, round((high - low) / scale_step) + 1)
    else:
        factor = rng.uniform(low, high)
    if not short_side:
        scaled = [max(1, round(extent * factor)) for extent in label.shape]
    else:
        factor_to_fit = int(short_side * factor) / min(label.shape)
        if max_long_side:
            factor_to_fit = min(factor_to_fit, int(max_long_side * factor) / max(label.shape))
        scaled = [max(1, int(extent * factor_to_fit + 0.5)) for extent in label.shape]
    return resize_image(image, scaled), resize_label(label, scaled)


def random_crop(
    image: ImageArray,
    label: LabelArray,
    size: Sequence[int],
    rng: np.random.Generator,
    *,
    cat_max_ratio: int | float = 1.0,
) -> tuple[NewImageArray, NewLabelArray]:
    """Takes a random crop. A side that is shorter than the crop stays as it is.

    Args:
      image: the image.
      label: its label.
      size: (height, width) of the crop.
      rng: random generator of this example.
      cat_max_ratio: a crop is drawn again, up to ten times, while one class has at least this share of its labeled
        pixels, or no two classes are in it (MMSegmentation; 0.75 for SegFormer). 1 takes the first crop.
    """
    crop = _draw_crop(label.shape, size, rng)
    if cat_max_ratio < 1:
        for _ in range(_MOST_CROPS):
            if _largest_share(label[crop]) < cat_max_ratio:
                break
            crop = _draw_crop(label.shape, size, rng)
    return image[crop], label[crop]


def _draw_crop(shape: Sequence[int], size: Sequence[int], rng: np.random.Generator) -> tuple[slice, slice]:
    top, left = (int(rng.integers(0, max(extent - wanted, 0) + 1)) for extent, wanted in zip(shape, size, strict=True))
    return slice(top, top + size[0]), slice(left, left + size[1])


def _largest_share(label: LabelArray) -> float:
    """The share of the most frequent class of the labeled pixels; 1 if nothing is labeled."""
    counts = np.bincount(label.ravel(), minlength=IGNORE_LABEL + 1)[:IGNORE_LABEL]
    return counts.max() / max(counts.sum(), 1) if counts.any() else 1.0


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


def random_rotation(
    image: Shaped[np.ndarray, "height width channels"],
    label: LabelArray,
    rng: np.random.Generator,
    *,
    degrees: int | float,
    pad_color: Sequence[int | float],
) -> tuple[Shaped[np.ndarray, "height width channels"], LabelArray]:
    """Rotates around the center by a random angle, with probability one half. The size of the image stays.

    Args:
      image: the image.
      label: its label.
      rng: random generator of this example.
      degrees: largest angle in either direction.
      pad_color: color of the corners that become empty, where labels are the ignore label.
    """
    if rng.random() >= 0.5:
        return image, label
    height, width = label.shape
    # Centers of pixels have integer coordinates here.
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), rng.uniform(-degrees, degrees), 1.0)
    # OpenCV takes border values of at most four channels.
    groups = [
        cv2.warpAffine(
            np.ascontiguousarray(image[..., i : i + 4]),
            matrix,
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderValue=tuple(pad_color[i : i + 4]),
        ).reshape(height, width, -1)
        for i in range(0, image.shape[-1], 4)
    ]
    image = np.concatenate(groups, axis=-1) if len(groups) > 1 else groups[0]
    label = cv2.warpAffine(label, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=IGNORE_LABEL)
    return image, label
