"""Supervisely's projects: `meta.json`, and in each data set images in `img/` and their JSON files in `ann/`.

Objects are drawn in order, later ones over earlier ones, as the Supervisely SDK draws them: bitmaps, polygons with
holes (`interior`) and rectangles. Coordinates are those of the upright image.
"""

import base64
import binascii
import pathlib
import zlib
from typing import Any

import numpy as np
from jaxtyping import Bool

from deeplab_jax.data import images
from deeplab_jax.data.formats import annotations as common
from deeplab_jax.data.formats.annotations import AnnotatedImage, Annotations, Classes, Export
from deeplab_jax.data.formats.canvas import place
from deeplab_jax.data.formats.rasterize import DegenerateShape, check_points, fill_opencv
from deeplab_jax.errors import UserError

_META, _ANNOTATIONS, _IMAGES = "meta.json", "ann", "img"
_PNG = b"\x89PNG"


def recognize(root: pathlib.Path) -> bool:
    """Whether a folder is an export in this format."""
    return (root / _META).is_file() and any(True for _ in root.glob(f"**/{_ANNOTATIONS}/*.json"))


def read(export: Export) -> Annotations:
    """Reads a project.

    Raises:
      UserError: a file is missing or damaged.
    """
    meta = export.root / _META
    entries = [
        (item["title"], common.parse_color(item.get("color")))
        for item in common.get_list(common.read_annotations(meta), "classes", meta)
        if isinstance(item.get("title"), str)
    ]
    classes = export.read_classes(entries, meta)
    paths = [path for path in export.find("*.json") if path.parent.name == _ANNOTATIONS]
    if not paths:
        raise UserError(f"{export.source} has no annotations ({_ANNOTATIONS}/*.json)")
    files = export.find_images()
    return Annotations(classes, [parse(common.read_annotations(path), classes, files, path) for path in paths])


def parse(values: dict[str, Any], classes: Classes, files: common.ImageFiles, path: pathlib.Path) -> AnnotatedImage:
    """The image of a file, `ann/a.jpg.json`: `img/a.jpg`.

    Args:
      values: the content of the file.
      classes: the classes.
      files: the images that it may name.
      path: the file.

    Raises:
      UserError: its image is missing, or an object has an unknown class.
    """
    folder = path.parent.parent.name
    found = files.find(f"{folder}/{_IMAGES}/{path.stem}", str(path))
    shapes = []
    for position, shape in enumerate(common.get_list(values, "objects", path)):
        entry = f"{path}, object {shape.get('id', position)}"
        shapes.append((entry, shape, classes.find(shape.get("classTitle"), entry)))
    size = values.get("size")
    return AnnotatedImage(
        name=files.output_name(found),
        image=files.path(found),
        entry=str(path),
        draw=lambda canvas: canvas.paint_all(shapes, fill_object),
        size=common.get_size(size, "height", "width") if isinstance(size, dict) else None,
    )


def fill_object(shape: dict[str, Any], size: tuple[int, int], entry: str) -> Bool[np.ndarray, "height width"]:
    """Draws an object.

    Args:
      shape: the object in the file.
      size: (height, width) of the image.
      entry: the file and the object, for messages.

    Raises:
      DegenerateShape: it covers no area.
      UserError: its bitmap is damaged.
    """
    kind = shape.get("geometryType")
    if kind == "bitmap":
        return _fill_bitmap(shape.get("bitmap"), size, entry)
    if kind not in ("polygon", "rectangle"):
        raise DegenerateShape(f"an object of type {common.shorten(kind)} covers no area")
    points = shape.get("points")
    if not isinstance(points, dict):
        raise DegenerateShape("it has no points")
    exterior = check_points(points.get("exterior"), size, at_least=2 if kind == "rectangle" else 3)
    if kind == "rectangle":
        left, top = exterior.min(0)
        right, bottom = exterior.max(0)
        exterior = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    interior = points.get("interior")
    holes = tuple(check_points(hole, size) for hole in (interior if isinstance(interior, list) else []))
    return fill_opencv(exterior, size, holes)


def _fill_bitmap(bitmap: object, size: tuple[int, int], entry: str) -> Bool[np.ndarray, "height width"]:
    """Places a bitmap: a PNG, compressed again by zlib, of which the opacity or any other value than 0 is the mask."""
    if not isinstance(bitmap, dict) or not isinstance(bitmap.get("data"), str):
        raise DegenerateShape("it has no bitmap")
    origin = check_points([bitmap.get("origin")], size, at_least=1)
    try:
        encoded = base64.b64decode(bitmap["data"], validate=True)
        if not encoded.startswith(_PNG):
            # A mask is not larger than its pixels.
            encoded = zlib.decompressobj().decompress(encoded, 4 * size[0] * size[1] + (1 << 16))
    except (binascii.Error, ValueError, zlib.error):
        raise UserError(f"{entry}: its bitmap is damaged") from None
    image = images.open_image(encoded, size[0] * size[1], name=f"of {entry}")
    mask = np.asarray(image.getchannel("A") if "A" in image.getbands() else image.convert("L")) > 0
    x, y = origin[0].astype(int).tolist()
    return place(mask, (x, y), size)
