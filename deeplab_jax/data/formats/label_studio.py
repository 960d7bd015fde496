"""Label Studio's exports: JSON with brush strokes, polygons, rectangles and ellipses, and PNG masks of brush strokes.

Coordinates are percentages of the image. Regions are drawn in the order of the file, later ones over earlier ones;
polygons, rectangles and ellipses as `pycocotools` draws the COCO export of Label Studio. A brush stroke covers the
pixels that are more than half opaque. Browsers show images upright, so coordinates are those of the upright image.

A PNG export is a folder of `task-1-annotation-2-by-3-tag-leaf-0.png`, which does not name the images: put the JSON
export of the same project in the folder, too.
"""

import math
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import numpy as np
from jaxtyping import Bool

from deeplab_jax.data import images
from deeplab_jax.data.formats import annotations as common
from deeplab_jax.data.formats.annotations import AnnotatedImage, Annotations, Export
from deeplab_jax.data.formats.canvas import Canvas
from deeplab_jax.data.formats.rasterize import DegenerateShape, check_points, fill_coco
from deeplab_jax.data.formats.run_lengths import decode_brush
from deeplab_jax.data.image_files import is_image_name
from deeplab_jax.errors import UserError

_OPAQUE = 128  # brush strokes are masks above this opacity, as in the SDK's `image2rle`
_ELLIPSE_CORNERS = 64
_PNG = re.compile(r"task-(?P<task>\d+)-annotation-\d+-by-[^-]*-(?P<tag>[^-]+)-(?P<label>.+)-(?P<number>\d+)\.png")
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # the server puts it in front of the names of uploaded files
_KINDS = ("brush", "polygon", "rectangle", "ellipse")


def recognize(root: pathlib.Path) -> bool:
    """Whether a folder is an export in this format."""
    if any(_PNG.fullmatch(path.name) for path in root.glob("task-*.png")):
        return True
    for path in sorted(root.glob("*.json"))[:1]:
        try:
            tasks = common.read_annotations(path, list)
        except UserError:
            return False
        return bool(tasks) and isinstance(tasks[0], dict) and isinstance(tasks[0].get("annotations"), list)
    return False


def read(export: Export) -> Annotations:
    """Reads an export.

    Raises:
      UserError: a file is missing or damaged, or does not name its images.
    """
    paths = export.find("*.json")
    masks = [path for path in export.find("task-*.png") if _PNG.fullmatch(path.name)] if export.source.is_dir() else []
    if not paths:
        problem = "has PNG masks, whose names do not say which image they belong to" if masks else "has no JSON file"
        raise UserError(f"{export.source} {problem}; put Label Studio's JSON export of the same project in it")
    tasks = [(f"{path}, task {i}", task) for path in paths for i, task in enumerate(_read_tasks(path))]
    by_task = defaultdict(list)
    for path in masks:
        by_task[_PNG.fullmatch(path.name)["task"]].append(path)
    chosen = [(entry, task, _choose(entry, task)) for entry, task in tasks]
    names = {label for entry, _, results in chosen for _, _, label in results}
    names |= {_PNG.fullmatch(path.name)["label"] for path in masks}
    classes = export.read_classes([(name, None) for name in sorted(names)], export.source)
    files = export.find_images()
    found = []
    for entry, task, results in chosen:
        key = _find_image(task, files, entry)
        strokes = by_task.pop(str(task.get("id")), None) if masks else None
        if strokes is not None:
            pixels = [(path, classes.find(_PNG.fullmatch(path.name)["label"], str(path))) for path in strokes]
            results = [(name, result, label) for name, result, label in results if _kind_of(result) != "brush"]
        else:
            pixels = []
        shapes = [(name, result, classes.find(label, name)) for name, result, label in results]
        found.append(
            AnnotatedImage(
                name=files.output_name(key),
                image=files.path(key),
                entry=entry,
                draw=lambda canvas, shapes=shapes, pixels=pixels: _draw(canvas, shapes, pixels),
                size=_size_of(results, entry),
            )
        )
    if by_task:
        raise UserError(f"{next(iter(by_task.values()))[0]} is of a task that the JSON files do not contain")
    several = sum(len(_annotations(task)) > 1 for _, task in tasks)
    notes = [f"{several} tasks have several annotations; the first of each is read"] if several else []
    return Annotations(classes, found, tuple(notes))


def _read_tasks(path: pathlib.Path) -> list[dict[str, Any]]:
    tasks = common.read_annotations(path, list)
    for i, task in enumerate(tasks):
        if not isinstance(task, dict) or not isinstance(task.get("annotations"), list):
            raise UserError(f"{path}, task {i} has no list `annotations`; export the project as JSON, not as JSON-MIN")
    return tasks


def _annotations(task: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in task["annotations"] if isinstance(item, dict) and not item.get("was_cancelled")]


def _choose(entry: str, task: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """The regions of the first annotation of a task that was not skipped: a name, the region and its label."""
    for annotation in _annotations(task)[:1]:
        results = common.get_list(annotation, "result", entry)
        named = [(f"{entry}, region {common.shorten(result.get('id', i))}", result) for i, result in enumerate(results)]
        return [(name, result, _label_of(result, name)) for name, result in named if _kind_of(result) is not None]
    return []


def _kind_of(result: dict[str, Any]) -> str | None:
    """The shape of a region: brush, polygon and so on; None for what is not a region, such as a rating."""
    kind = result.get("type")
    kind = kind.removesuffix("labels") if isinstance(kind, str) else None
    return kind if kind in _KINDS and isinstance(result.get("value"), dict) else None


def _label_of(result: dict[str, Any], entry: str) -> str:
    """The label of a region. Regions of tags without labels have it in a list of another name."""
    value = result["value"]
    names = value.get(f"{_kind_of(result)}labels") or value.get("labels")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise UserError(f"{entry} has the labels {common.shorten(names)}; exactly one is needed")
    return names[0]


def _size_of(results: Iterable[tuple[str, dict[str, Any], Any]], entry: str) -> tuple[int, int] | None:
    for name, result, _ in results:
        if result.get("image_rotation") not in (None, 0):
            raise UserError(f"{name}: the image is rotated in Label Studio by {result['image_rotation']} degrees")
        return common.get_size(result, "original_height", "original_width")
    return None


def _find_image(task: dict[str, Any], files: common.ImageFiles, entry: str) -> str:
    """The image of a task: the first value of its data that looks like one, in whichever spelling is found."""
    data = task.get("data")
    values = data.values() if isinstance(data, dict) else ()
    # `/data/local-files/?d=photos/a.jpg`
    paths = [value.rpartition("?d=")[2].partition("?")[0] for value in values if isinstance(value, str)]
    path = next((path for path in paths if is_image_name(path)), None)
    if path is None:
        raise UserError(f"{entry} does not name its image")
    folder, slash, name = path.rpartition("/")
    candidates = [path, unquote(path), folder + slash + _UPLOAD.sub("", name, count=1)]
    for candidate in (*candidates, unquote(candidates[-1])):
        try:
            return files.find(candidate, entry)
        except UserError as error:
            problem = error
    raise problem


def _draw(canvas: Canvas, shapes: list[tuple[str, dict[str, Any], int]], masks: list[tuple[pathlib.Path, int]]) -> None:
    for path, class_id in masks:
        opacity = np.asarray(images.open_image(path).convert("L"))
        canvas.check_size(opacity.shape, path)
        canvas.paint(class_id, str(path), lambda size, opacity=opacity: opacity > _OPAQUE)
    for entry, result, class_id in shapes:
        canvas.paint(class_id, entry, lambda size, result=result: fill_region(result, size))


def fill_region(result: dict[str, Any], size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Draws a region.

    Args:
      result: the object in the file.
      size: (height, width) of the image.

    Raises:
      DegenerateShape: it covers no area, or is damaged.
    """
    value, kind = result["value"], _kind_of(result)
    scale = np.array(size[::-1]) / 100
    if kind == "brush":
        return decode_brush(value.get("rle"), size) > _OPAQUE
    if kind == "polygon":
        points = check_points(value.get("points"), (100, 100))
        return fill_coco(points * scale, size)
    if kind == "rectangle":
        x, y, width, height = _numbers(value, "x", "y", "width", "height")
        corners = np.array([(0, 0), (width, 0), (width, height), (0, height)])
        origin = np.array([x, y])
    else:
        x, y, width, height = _numbers(value, "x", "y", "radiusX", "radiusY")
        angles = np.linspace(0, 2 * math.pi, _ELLIPSE_CORNERS, endpoint=False)
        corners = np.stack([width * np.cos(angles), height * np.sin(angles)], 1)
        origin = np.array([x, y])
    angle = math.radians(_numbers(value | {"rotation": value.get("rotation") or 0}, "rotation")[0])
    rotation = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    # Rotated in pixels, around the upper left corner or the center.
    points = (corners * scale) @ rotation + origin * scale
    return fill_coco(check_points(points, size), size)


def _numbers(value: dict[str, Any], *names: str) -> list[float]:
    numbers = [value.get(name) for name in names]
    if not all(isinstance(number, int | float) and abs(number) < 1e6 for number in numbers):
        raise DegenerateShape(f"it lacks one of the numbers {', '.join(names)}")
    return [float(number) for number in numbers]
