"""LabelMe's JSON files, one per image (the Python program `labelme`).

Shapes are drawn in order, later ones over earlier ones, as `labelme.utils.shapes_to_label` draws them: polygons,
rectangles, circles and masks. Draw a hole as a polygon of the class that is inside, or of `_background_`, on top. Lines
and points cover no area. LabelMe shows images upright, so coordinates are those of the upright image.
"""

import base64
import binascii
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from deeplab_jax.data import images
from deeplab_jax.data.formats import annotations as common
from deeplab_jax.data.formats.annotations import AnnotatedImage, Annotations, Classes, Export
from deeplab_jax.data.formats.canvas import place
from deeplab_jax.data.formats.class_list import IGNORE_NAME
from deeplab_jax.data.formats.labeled_image import LabeledImage
from deeplab_jax.data.formats.rasterize import DegenerateShape, check_points, fill_pillow
from deeplab_jax.data.formats.text_file import read_lines
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_json

_LABELS = "labels.txt"
_INSET = 0.5  # pixels; Pillow paints the pixels that an outline is in, so it goes through their centers


def recognize(root: pathlib.Path) -> bool:
    """Whether a folder is an export in this format."""
    path = next((path for path in sorted(root.glob("**/*.json")) if path.is_file()), None)
    if path is None:
        return False
    try:
        return _is_labelme(common.read_annotations(path))
    except UserError:
        return False


def _is_labelme(values: dict[str, Any]) -> bool:
    return isinstance(values.get("shapes"), list) and "imagePath" in values


def read(export: Export) -> Annotations:
    """Reads a file, or all files of a folder. `labels.txt` in the folder sets the order of the classes.

    Raises:
      UserError: a file is damaged, or its image is missing.
    """
    contents = {path: common.read_annotations(path) for path in export.find("*.json")}
    contents = {path: values for path, values in contents.items() if _is_labelme(values)}
    if not contents:
        raise UserError(f"{export.source} has no LabelMe files (.json with `shapes` and `imagePath`)")
    labels = export.root / _LABELS
    if labels.is_file():
        names = [line.strip() for line in read_lines(labels) if line.strip() and not line.startswith("#")]
    else:
        shapes = [shape for path, values in contents.items() for shape in common.get_list(values, "shapes", path)]
        names = sorted({shape["label"] for shape in shapes if isinstance(shape.get("label"), str)} - {IGNORE_NAME})
    classes = export.read_classes([(name, None) for name in names], labels if labels.is_file() else export.source)
    files = export.find_images()
    return Annotations(classes, [parse(values, classes, files, path) for path, values in contents.items()])


def parse(values: dict[str, Any], classes: Classes, files: common.ImageFiles, path: pathlib.Path) -> AnnotatedImage:
    """The image of a file.

    Args:
      values: the content of the file.
      classes: the classes.
      files: the images that it may name.
      path: the file, for messages.

    Raises:
      UserError: its image is missing, or a shape has an unknown class.
    """
    try:
        found = files.find(values["imagePath"], str(path))
        name, image = files.output_name(found), files.path(found)
    except UserError:
        if not isinstance(values.get("imageData"), str):
            raise
        image = _decode(values["imageData"], f"{path}: imageData")
        suffix = ".jpg" if images.read_header(image, f"in {path}").format == "JPEG" else ".png"
        name = path.stem + suffix
    shapes = []
    for position, shape in enumerate(common.get_list(values, "shapes", path)):
        entry = f"{path}, shape {position}"
        shapes.append((entry, shape, classes.find(shape.get("label"), entry)))
    return AnnotatedImage(
        name=name,
        image=image,
        entry=str(path),
        draw=lambda canvas: canvas.paint_all(shapes, fill_shape),
        size=common.get_size(values, "imageHeight", "imageWidth"),
    )


def _decode(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{name} is not valid base64") from None


def fill_shape(shape: dict[str, Any], size: tuple[int, int], entry: str) -> Bool[np.ndarray, "height width"]:
    """Draws a shape.

    Args:
      shape: the object in the file.
      size: (height, width) of the image.
      entry: the file and the shape, for messages.

    Raises:
      DegenerateShape: it covers no area.
      UserError: its mask is damaged.
    """
    kind, points = shape.get("shape_type"), shape.get("points")
    if kind in (None, "polygon", "oriented_rectangle"):
        return fill_pillow(check_points(points, size), size)
    if kind not in ("rectangle", "circle", "mask"):
        raise DegenerateShape(f"a shape of type {common.shorten(kind)} covers no area")
    points = check_points(points, size, at_least=2)
    if len(points) != 2:
        raise DegenerateShape(f"a {kind} has 2 points, not {len(points)}")
    canvas = Image.new("L", size[::-1])
    (x0, y0), (x1, y1) = points.tolist()
    if kind == "rectangle":
        corners = (min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1))
        ImageDraw.Draw(canvas).rectangle(corners, outline=1, fill=1)
    elif kind == "circle":
        radius = math.hypot(x0 - x1, y0 - y1)
        box = (x0 - radius, y0 - radius), (x0 + radius, y0 + radius)
        ImageDraw.Draw(canvas).ellipse(box, outline=1, fill=1)
    else:
        return _place_mask(shape.get("mask"), (int(x0), int(y0)), size, entry)
    return np.asarray(canvas).astype(bool)


def _place_mask(
    text: object, corner: tuple[int, int], size: tuple[int, int], entry: str
) -> Bool[np.ndarray, "height width"]:
    """Places a mask, an encoded PNG, with its upper left corner at a point."""
    if not isinstance(text, str):
        raise DegenerateShape("a mask has no PNG")
    image = images.open_image(_decode(text, f"{entry}: mask"), size[0] * size[1], name=f"of {entry}")
    return place(np.asarray(image.convert("L")) > 0, corner, size)


def write(labels: Iterable[LabeledImage], folder: pathlib.Path) -> None:
    """Writes the images, and a JSON file beside each.

    Args:
      labels: the images and their labels, of the same classes.
      folder: where to write them.
    """
    for labeled in labels:
        target = folder / labeled.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(labeled.image.read_bytes())
        names = labeled.exported_classes()
        shapes = [
            {
                "label": names[class_id],
                "points": polygon.tolist(),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for class_id, polygon in labeled.polygons(inset=_INSET)
        ]
        height, width = labeled.label.shape
        values = {
            "version": "5.5.0",  # newer programs read it
            "flags": {},
            "shapes": shapes,
            "imagePath": target.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_json(target.with_suffix(".json"), values)
