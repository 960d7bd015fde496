"""Scores near boundaries: boundary IoU, and the trimap curve of the DeepLab papers. All counts are integers.

Distances are chessboard distances: the neighbors of a pixel, diagonal ones included, are at distance 1. Pixels within
distance w of a set are those that a square of 2w + 1 pixels dilates it to.
"""

import math

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from deeplab_jax.evaluation.metrics import ClassCounts
from deeplab_jax.labels import IGNORE_LABEL

#: Width of the boundaries of boundary IoU, as a fraction of the image's diagonal (Cheng et al. 2021).
BOUNDARY_RATIO = 0.02

#: Largest trimap width in pixels; the evaluation script of DeepLab's authors also computes widths 1 to 40.
MAX_TRIMAP_WIDTH = 40


def boundary_width(size: tuple[int, int], ratio: int | float = BOUNDARY_RATIO) -> int:
    """Returns the width in pixels of the boundaries of an image of (height, width): at least 1."""
    height, width = size
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def boundary_counts(
    label: UInt8[np.ndarray, "height width"],
    prediction: UInt8[np.ndarray, "height width"],
    *,
    num_classes: int,
    ratio: int | float = BOUNDARY_RATIO,
) -> ClassCounts:
    """Counts the boundary pixels of one image for boundary IoU ([arXiv 2103.16562](https://arxiv.org/abs/2103.16562)).

    The boundary of a class is its pixels within `boundary_width` of a pixel that is not of the class, or of the outside
    of the image. Like the authors' code for panoptic segmentation, this leaves out the predicted boundary where the
    label is ignored. The IoU of the sums over the images of a split is the boundary IoU of each class.

    Args:
      label: class ids, or `IGNORE_LABEL`.
      prediction: class ids.
      num_classes: number of classes.
      ratio: width of the boundaries as a fraction of the image's diagonal.

    Returns:
      Counts of shape (num_classes,).
    """
    width = boundary_width(label.shape, ratio)
    outside = num_classes  # stands for pixels that are not on a boundary
    truth = np.where(_is_boundary(label, width), label, outside)
    predicted = np.where(_is_boundary(prediction, width), prediction, outside)
    counted = label != IGNORE_LABEL
    return ClassCounts.from_labels(truth[counted], predicted[counted], num_classes)


def _is_boundary(label: UInt8[np.ndarray, "height width"], width: int) -> Bool[np.ndarray, "height width"]:
    is_boundary = distance_to_other_label(label) <= width
    # The first row is at distance 1 of the outside.
    is_boundary[:width] = is_boundary[-width:] = True
    is_boundary[:, :width] = is_boundary[:, -width:] = True
    return is_boundary


def distance_to_ignored(label: UInt8[np.ndarray, "height width"]) -> Float32[np.ndarray, "height width"]:
    """Returns the distance of each pixel to the nearest ignored pixel: 0 for ignored pixels, inf if there are none."""
    return _distance_to(label == IGNORE_LABEL)


def distance_to_other_label(label: UInt8[np.ndarray, "height width"]) -> Float32[np.ndarray, "height width"]:
    """Returns the distance of each pixel to the nearest pixel with another label: inf if there are none.

    The ignore label is a label like others. Pixels on either side of a boundary are at distance 1.
    """
    kernel = np.ones((3, 3), np.uint8)
    touches_other = cv2.erode(label, kernel) != cv2.dilate(label, kernel)
    # On a shortest path to another label, the last pixel with the own one is the nearest that touches another.
    return _distance_to(touches_other) + 1


def _distance_to(target: Bool[np.ndarray, "height width"]) -> Float32[np.ndarray, "height width"]:
    if not target.any():
        return np.full(target.shape, np.inf, np.float32)
    # A 3x3 mask computes this metric exactly.
    return cv2.distanceTransform((~target).view(np.uint8), cv2.DIST_C, cv2.DIST_MASK_3)


def trimap_counts(
    label: UInt8[np.ndarray, "height width"],
    prediction: UInt8[np.ndarray, "height width"],
    distance: Float32[np.ndarray, "height width"],
    *,
    num_classes: int,
    max_width: int = MAX_TRIMAP_WIDTH,
) -> ClassCounts:
    """Counts the labeled pixels of one image inside trimaps of all widths up to `max_width`.

    Args:
      label: class ids, or `IGNORE_LABEL`.
      prediction: class ids.
      distance: distance of each pixel to a boundary. `distance_to_ignored` gives the trimap of the DeepLab papers,
        which dilate the ignored pixels around objects; `distance_to_other_label` needs no ignored pixels.
      num_classes: number of classes.
      max_width: largest width.

    Returns:
      Counts of shape (max_width, num_classes). Row w - 1 has the pixels within distance w. Their sums over the images
      of a split give the scores at each width, for example `counts.iou()`.
    """
    inside = (label != IGNORE_LABEL) & (distance <= max_width)
    # One histogram over distances and classes; the sum up to a distance is the trimap of that width.
    rows = (distance[inside].astype(np.int64) - 1) * num_classes
    counts = ClassCounts.from_labels(rows + label[inside], rows + prediction[inside], max_width * num_classes)
    arrays = (counts.intersection, counts.truth, counts.predicted)
    return ClassCounts(*(each.reshape(max_width, num_classes).cumsum(axis=0) for each in arrays))
