"""The XML of `CVAT for images 1.1` (docs.cvat.ai/docs/manual/advanced/xml_format).

Shapes are drawn in the order of `z_order`, and of the file where it is equal, as CVAT's export of masks draws them:
polygons and boxes as `pycocotools` does, masks as they are, ellipses with OpenCV. Polylines and points cover no area.

The file is read as a stream of elements by Python's expat parser. A document type, in which entities are declared that
grow without limit or name other files, is refused.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterable
from xml.parsers import expat

import cv2
import numpy as np
from jaxtyping import Bool

from deeplab_jax import budget
from deeplab_jax.data.formats import annotations as common
from deeplab_jax.data.formats.annotations import AnnotatedImage, Classes
from deeplab_jax.data.formats.canvas import Canvas, place
from deeplab_jax.data.formats.class_list import Color
from deeplab_jax.data.formats.rasterize import DegenerateShape, check_points, fill_coco
from deeplab_jax.data.formats.run_lengths import decode_runs
from deeplab_jax.errors import UserError

_SHAPES = ("polygon", "box", "mask", "ellipse", "polyline", "points", "cuboid", "skeleton")


@dataclasses.dataclass
class Shape:
    """A shape: the name of its element, and its attributes."""

    kind: str
    values: dict[str, str]


@dataclasses.dataclass
class Content:
    """The content of a file.

    Attributes:
      labels: name and color of each class.
      images: the attributes of each image, and its shapes.
    """

    labels: list[tuple[str, Color | None]]
    images: list[tuple[dict[str, str], list[Shape]]]


def parse(path: pathlib.Path) -> Content:
    """Parses a file.

    Raises:
      UserError: it is damaged, too large, has a document type, or contains tracks of a video.
    """
    try:
        content = budget.read_bytes(path, budget.ANNOTATION_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    reader = _Reader(path)
    try:
        reader.parser.Parse(content, True)
    except expat.ExpatError as error:
        raise UserError(f"{path} is damaged: not valid XML ({error})") from None
    if not reader.content.images:
        raise UserError(f"{path} has no images; export it from CVAT as `CVAT for images 1.1`")
    return reader.content


class _Reader:
    """Collects labels, images and shapes from the elements of a file."""

    def __init__(self, path: pathlib.Path):
        self.content = Content([], [])
        self._path, self._elements = path, []
        self._text = ""
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._add_text

    def _refuse(self, *_: object) -> None:
        raise UserError(f"{self._path} declares a document type, which CVAT does not write; it is not read")

    def _start(self, name: str, values: dict[str, str]) -> None:
        if name == "track":
            raise UserError(f"{self._path} has tracks of a video; export it from CVAT as `CVAT for images 1.1`")
        if name == "image":
            self.content.images.append((values, []))
        elif name in _SHAPES and "image" in self._elements:
            self.content.images[-1][1].append(Shape(name, values))
        if len(self._elements) >= budget.JSON_DEPTH:
            raise UserError(f"{self._path} is damaged: its XML is nested more than {budget.JSON_DEPTH} levels deep")
        self._elements.append(name)
        self._text = ""

    def _end(self, name: str) -> None:
        self._elements.pop()
        if self._elements[-1:] == ["label"]:
            if name == "name":
                self.content.labels.append((self._text.strip(), None))
            elif name == "color" and self.content.labels:
                self.content.labels[-1] = self.content.labels[-1][0], common.parse_color(self._text.strip())

    def _add_text(self, text: str) -> None:
        if self._elements[-1] in ("name", "color"):
            self._text += text


def read_images(
    content: Content, classes: Classes, files: common.ImageFiles, path: pathlib.Path
) -> Iterable[AnnotatedImage]:
    """The images of a file.

    Args:
      content: its content.
      classes: the classes.
      files: the images that it may name.
      path: the file, for messages.

    Raises:
      UserError: an image is missing, or a shape has an unknown class.
    """
    for values, shapes in content.images:
        entry = f"{path}, image {common.shorten(values.get('name'))}"
        # The images of a project are in folders of their subsets, which their names do not contain.
        name = "/".join(part for part in (values.get("subset"), values.get("name")) if part)
        found = files.find(name, entry)
        drawn = []
        for position, shape in enumerate(shapes):
            name = f"{entry}, {shape.kind} {position}"
            drawn.append((_z_order(shape, name), name, shape, classes.find(shape.values.get("label"), name)))
        drawn.sort(key=lambda item: item[0])
        sides = [values.get("height", ""), values.get("width", "")]
        yield AnnotatedImage(
            name=files.output_name(found),
            image=files.path(found),
            entry=entry,
            draw=lambda canvas, drawn=tuple(drawn): _draw(canvas, drawn),
            size=(int(sides[0]), int(sides[1])) if all(side.isdecimal() and len(side) < 9 for side in sides) else None,
        )


def _z_order(shape: Shape, entry: str) -> int:
    try:
        return int(shape.values.get("z_order", "0")[:20])
    except ValueError:
        raise UserError(f"{entry} has z_order {common.shorten(shape.values['z_order'])}, not an integer") from None


def _draw(canvas: Canvas, shapes: Iterable[tuple[int, str, Shape, int]]) -> None:
    for _, entry, shape, class_id in shapes:
        canvas.paint(class_id, entry, lambda size, shape=shape: fill_shape(shape, size))


def fill_shape(shape: Shape, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Draws a shape.

    Args:
      shape: the shape.
      size: (height, width) of the image.

    Raises:
      DegenerateShape: it covers no area, or is damaged.
    """
    if shape.kind == "polygon":
        pairs = [pair.split(",") for pair in shape.values.get("points", "").split(";")]
        return fill_coco(check_points(pairs, size), size)
    if shape.kind == "box":
        left, top, right, bottom, angle = _numbers(shape, "xtl", "ytl", "xbr", "ybr", "rotation")
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        if angle:
            center = corners.mean(0)
            cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            corners = (corners - center) @ np.array([(cosine, sine), (-sine, cosine)]) + center
        return fill_coco(check_points(corners, size), size)
    if shape.kind == "mask":
        return _fill_mask(shape, size)
    if shape.kind == "ellipse":
        x, y, radius_x, radius_y, angle = _numbers(shape, "cx", "cy", "rx", "ry", "rotation")
        check_points([(x, y), (radius_x, radius_y)], size, at_least=2)
        mask = np.zeros(size, np.uint8)
        cv2.ellipse(mask, (int(x), int(y)), (abs(int(radius_x)), abs(int(radius_y))), angle, 0, 360, 1, thickness=-1)
        return mask.astype(bool)
    raise DegenerateShape(f"a {shape.kind} covers no area")


def _numbers(shape: Shape, *names: str) -> list[float]:
    """Attributes that are numbers; 0 for a rotation that is missing."""
    try:
        numbers = [float(shape.values.get(name, "0") if name == "rotation" else shape.values[name]) for name in names]
    except (KeyError, ValueError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise DegenerateShape(f"it lacks one of the numbers {', '.join(names)}")
    return numbers


def _fill_mask(shape: Shape, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Places a mask, which is stored as run lengths of its bounding box, row by row."""
    left, top, width, height = (int(number) for number in _numbers(shape, "left", "top", "width", "height"))
    if not (0 < width <= 2 * size[1] and 0 < height <= 2 * size[0]):
        raise DegenerateShape(f"its box of {height}x{width} pixels does not fit the image")
    try:
        counts = [int(count) for count in shape.values.get("rle", "").split(",")]
    except ValueError:
        raise DegenerateShape("its run lengths are damaged") from None
    return place(decode_runs(counts, (height, width)), (left, top), size)
