"""Drawing polygons as masks, pixel for pixel as the libraries of annotation tools draw them.

The tools disagree about the pixels on an outline, so each format has its own rule:

- `fill_coco`: the pixels inside an outline of real coordinates, as `pycocotools` (`maskApi.c`, `rleFrPoly`). COCO, CVAT
  and Label Studio draw in this way. It is implemented here because annotations are files of strangers, and the C code
  trusts the coordinates that it is given.
- `fill_pillow`: Pillow's polygon with its outline, as `labelme.utils.shape_to_mask`.
- `fill_opencv`: OpenCV's `fillPoly`, which also paints the outline, as Supervisely and Ultralytics (YOLO).
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from deeplab_jax import budget

Points = Float[np.ndarray, "_ 2"]

_UPSAMPLING = 5  # of pycocotools: outlines are drawn on a grid this much finer
_FAR = 8  # sides of the image; coordinates farther away are damage, and would take time to draw


class DegenerateShape(ValueError):
    """A shape that covers no area. The message is the reason, as the end of a sentence about the shape."""


def check_points(points: object, size: tuple[int, int], *, at_least: int = 3) -> Points:
    """Converts the points of a file to an array of (x, y).

    Args:
      points: a list of pairs of numbers.
      size: (height, width) of the image.
      at_least: number of points that the shape needs.

    Raises:
      DegenerateShape: there are too few or too many, they are not numbers, or they are far outside of the image.
    """
    if not isinstance(points, list | tuple | np.ndarray):
        raise DegenerateShape("its points are not a list")
    if len(points) < at_least:
        raise DegenerateShape(f"it has {len(points)} points; at least {at_least} are needed")
    if len(points) > budget.POLYGON_VERTICES:
        raise DegenerateShape(f"it has {len(points)} points; at most {budget.POLYGON_VERTICES} are read")
    try:
        array = np.asarray(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.shape != (len(points), 2):
        raise DegenerateShape("its points are not pairs of numbers")
    limit = _FAR * max(size)
    if not (np.abs(array) <= limit).all():
        raise DegenerateShape("its points are far outside of the image")
    return array


def fill_coco(points: Points, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Draws a polygon as `pycocotools.mask.frPyObjects` does.

    The outline is drawn on a grid five times finer. A pixel is inside if the outline crosses its column an odd number
    of times above its center.

    Args:
      points: (x, y) of the vertices; pixel (0, 0) covers 0 to 1.
      size: (height, width) of the mask.

    Raises:
      DegenerateShape: the outline is implausibly long.
    """
    height, width = size
    u, v = _outline(np.trunc(_UPSAMPLING * points + 0.5).astype(np.int64))
    step = np.flatnonzero(u[1:] != u[:-1])
    x = (np.where(u[step + 1] < u[step], u[step + 1], u[step + 1] - 1) + 0.5) / _UPSAMPLING - 0.5
    y = (np.minimum(v[step + 1], v[step]) + 0.5) / _UPSAMPLING - 0.5
    is_center = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    columns = x[is_center].astype(np.int64)
    rows = np.ceil(np.clip(y[is_center], 0, height)).astype(np.int64)
    mask = np.zeros(size, bool)
    if columns.size:
        left, right = columns.min(), columns.max() + 1
        crossings = np.bincount((columns - left) * height + rows, minlength=(right - left) * height + 1)
        inside = np.cumsum(crossings[:-1], dtype=np.uint8) & 1
        mask[:, left:right] = inside.reshape(right - left, height).T
    return mask


def _outline(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The (x, y) of every grid point on the closed outline of integer vertices, edge after edge."""
    following = np.roll(points, -1, axis=0)
    distance = np.abs(following - points)
    steep = distance[:, 0] < distance[:, 1]
    major = steep.astype(int)  # the axis along which the edge is longer
    edges = np.arange(len(points))
    backward = points[edges, major] > following[edges, major]  # an edge has the same points in both directions
    first = np.where(backward[:, None], following, points)
    last = np.where(backward[:, None], points, following)
    length = distance[edges, major]
    if length.sum() + len(points) > budget.OUTLINE_POINTS:
        raise DegenerateShape("its outline is implausibly long")
    slope = (last - first)[edges, 1 - major] / np.maximum(length, 1)
    edge = np.repeat(edges, length + 1)
    offset = np.cumsum(length + 1) - (length + 1)
    position = np.arange(len(edge)) - offset[edge]
    position = np.where(backward[edge], length[edge] - position, position)
    along = position + first[edges, major][edge]
    across = np.trunc(first[edges, 1 - major][edge] + slope[edge] * position + 0.5).astype(np.int64)
    return np.where(steep[edge], across, along), np.where(steep[edge], along, across)


def fill_pillow(points: Points, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Draws a polygon and its outline as `labelme.utils.shape_to_mask` does.

    Args:
      points: (x, y) of the vertices; Pillow rounds them toward zero.
      size: (height, width) of the mask.
    """
    canvas = Image.new("L", size[::-1])
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points.tolist()], outline=1, fill=1)
    return np.asarray(canvas).astype(bool)


def fill_opencv(
    points: Points, size: tuple[int, int], holes: tuple[Points, ...] = ()
) -> Bool[np.ndarray, "height width"]:
    """Draws a polygon and its outline with OpenCV, as Supervisely and Ultralytics do.

    Args:
      points: (x, y) of the vertices, rounded toward zero.
      size: (height, width) of the mask.
      holes: polygons to cut out, with their outlines.
    """
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    for hole in holes:
        cv2.fillPoly(mask, [hole.astype(np.int32)], 0)
    return mask.astype(bool)
