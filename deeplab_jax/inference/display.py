"""Overviews of images that are too large to be drawn at their own size."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8

from deeplab_jax import data

_LONGEST = 4096  # pixels of the longer side of an overview
_STRIP = 2**24  # pixels that are read at a time

Drawing = UInt8[np.ndarray, "rows columns 3"]


def reduce_for_display(
    image: np.ndarray | data.LazyTiff,
    label_map: UInt8[np.ndarray, "height width"],
    draw: Callable[[np.ndarray], Drawing],
) -> tuple[Drawing, UInt8[np.ndarray, "rows columns"]]:
    """Draws an image as 8-bit RGB for an overlay. A large TIFF is shrunk by a whole factor while it is read.

    Args:
      image: the image.
      label_map: its labels.
      draw: draws a part of the image at its own size, see `Predictor.draw`.

    Returns:
      The drawing, and the labels at its size.
    """
    if isinstance(image, np.ndarray):
        return draw(image), label_map
    height, width = image.shape[:2]
    factor = max(1, math.ceil(max(height, width) / _LONGEST))
    rows = max(1, _STRIP // (width * factor)) * factor
    parts = []
    for top in range(0, height, rows):
        strip = draw(image[top : top + rows, :])
        size = (math.ceil(width / factor), math.ceil(len(strip) / factor))
        parts.append(cv2.resize(strip, size, interpolation=cv2.INTER_AREA))
    drawing = np.concatenate(parts)
    labels = cv2.resize(label_map, drawing.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return drawing, labels
