"""Transforms of the colors of 8-bit RGB images, and blur, which takes images of any kind. They leave labels alone."""

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

ImageArray = UInt8[np.ndarray, "height width 3"]
AnyImageArray = Shaped[np.ndarray, "height width channels"]

_HUES = 180  # of OpenCV's 8-bit HSV: two degrees each


def photometric_distortion(
    image: ImageArray,
    rng: np.random.Generator,
    *,
    brightness: int | float = 32,
    contrast: int | float = 0.5,
    saturation: int | float = 0.5,
    hue: int = 18,
) -> ImageArray:
    """Distorts brightness, contrast, saturation and hue, each with probability one half (SSD, arXiv 1512.02325).

    Order, values and rounding are those of MMSegmentation's `PhotoMetricDistortion`, which SegFormer is trained with:
    brightness, then contrast, saturation, hue; in half of the images, contrast comes last instead. Every step rounds
    down to integers and clips to the range 0 to 255.

    Args:
      image: the image.
      rng: random generator of this example.
      brightness: the largest number to add or subtract.
      contrast: values are multiplied by a factor from 1 - contrast to 1 + contrast.
      saturation: the same for the saturation.
      hue: steps of two degrees; the hue moves by -hue to hue - 1 of them.
    """
    if _coin(rng):
        image = cv2.LUT(image, _table(offset=rng.uniform(-brightness, brightness)))
    contrast_is_last = _coin(rng)
    if not contrast_is_last:
        image = _random_contrast(image, rng, contrast)
    identity = np.arange(256, dtype=np.uint8)
    if _coin(rng):
        factor = rng.uniform(1 - saturation, 1 + saturation)
        image = _map_hsv(image, identity, _table(factor))
    if _coin(rng):
        image = _map_hsv(image, ((np.arange(256) + rng.integers(-hue, hue)) % _HUES).astype(np.uint8), identity)
    return _random_contrast(image, rng, contrast) if contrast_is_last else image


def _random_contrast(image: ImageArray, rng: np.random.Generator, contrast: int | float) -> ImageArray:
    if not _coin(rng):
        return image
    return cv2.LUT(image, _table(rng.uniform(1 - contrast, 1 + contrast)))


def _coin(rng: np.random.Generator) -> bool:
    return rng.random() < 0.5


def _table(factor: int | float = 1, offset: int | float = 0) -> UInt8[np.ndarray, "256"]:
    """The value that each of 256 values becomes."""
    values = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return values.clip(0, 255).astype(np.uint8)


def _map_hsv(image: ImageArray, hues: UInt8[np.ndarray, "256"], saturations: UInt8[np.ndarray, "256"]) -> ImageArray:
    """Replaces hues and saturations by those of a table."""
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    changed = cv2.merge([cv2.LUT(hue, hues), cv2.LUT(saturation, saturations), value])
    return cv2.cvtColor(changed, cv2.COLOR_HSV2RGB)


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


def random_grayscale(image: ImageArray, rng: np.random.Generator, *, share: float) -> ImageArray:
    """Turns an image gray.

    Args:
      image: the image.
      rng: random generator of this example.
      share: the probability.
    """
    if rng.random() >= share:
        return image
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def random_blur(image: AnyImageArray, rng: np.random.Generator, *, sigma: int | float) -> AnyImageArray:
    """Blurs with a Gaussian, with probability one half.

    Args:
      image: the image.
      rng: random generator of this example.
      sigma: largest standard deviation in pixels; each is drawn from 0 to this.
    """
    if rng.random() >= 0.5:
        return image
    blurred = cv2.GaussianBlur(image, (0, 0), sigma * (1 - rng.random()))  # never 0, which OpenCV does not take
    return blurred.reshape(image.shape)  # OpenCV drops the axis of a single channel
