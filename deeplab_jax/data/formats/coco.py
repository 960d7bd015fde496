"""COCO's `instances` JSON (cocodataset.org/#format-data), as COCO itself, CVAT, Roboflow and Label Studio write it.

Polygons and run lengths are drawn as `pycocotools` draws them. COCO has no order of overlapping annotations: smaller
ones are drawn over larger ones. Crowds (`iscrowd: 1`) are ignored pixels where nothing else is annotated.
"""

import functools
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool

from deeplab_jax.data.formats import annotations as common
from deeplab_jax.data.formats.annotations import AnnotatedImage, Annotations, Classes, Export
from deeplab_jax.data.formats.canvas import Canvas, CroppedMask
from deeplab_jax.data.formats.labeled_image import LabeledImage
from deeplab_jax.data.formats.outlines import area
from deeplab_jax.data.formats.rasterize import DegenerateShape, check_points, fill_coco
from deeplab_jax.data.formats.run_lengths import decode_coco
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_json
from deeplab_jax.labels import IGNORE_LABEL

_SPLIT = re.compile(r"(?:instances_)?(train|val|test)(?:ing|id|idation)?[\d_\-]*", re.IGNORECASE)


def recognize(root: pathlib.Path) -> bool:
    """Whether a folder is an export in this format."""
    names = ("_annotations.coco.json", "*/_annotations.coco.json", "annotations/instances_*.json", "instances*.json")
    return any(True for name in names for _ in root.glob(name))


def read(export: Export) -> Annotations:
    """Reads an annotation file, or all annotation files of a folder.

    Raises:
      UserError: a file is damaged, or names images or categories that do not exist.
    """
    paths = [path for path in export.find("*.json") if path.parent.name != "annotations" or _is_instances(path)]
    if not paths:
        raise UserError(f"{export.source} has no COCO annotations (.json)")
    contents = {path: common.read_annotations(path) for path in paths}
    if export.source.is_dir():  # other tools leave JSON files of their own
        contents = {path: values for path, values in contents.items() if {"images", "annotations"} <= set(values)}
        if not contents:
            raise UserError(f"{export.source} has no JSON file with COCO's lists `images` and `annotations`")
    entries = [
        (category.get("name"), None)
        for path, values in contents.items()
        for category in _categories(values, path).values()
    ]
    classes = export.read_classes(entries, next(iter(contents)))
    root = export
    if export.source.is_file() and export.images is None and export.source.parent.name == "annotations":
        root = Export(export.source.parent.parent)  # annotations/instances.json beside images/
    files = root.find_images()
    images = [
        image
        for path, values in contents.items()
        for image in parse(values, classes, files, path, split=_split_of(path) if len(contents) > 1 else None)
    ]
    return Annotations(classes, images)


def _is_instances(path: pathlib.Path) -> bool:
    """COCO's folder of annotations also has captions, keypoints and stuff."""
    return path.name.startswith("instances") or not any(path.parent.glob("instances*.json"))


def _split_of(path: pathlib.Path) -> str | None:
    match = _SPLIT.fullmatch(path.stem)
    return match[1].lower() if match else None


def parse(
    values: dict[str, Any], classes: Classes, files: common.ImageFiles, path: pathlib.Path, split: str | None = None
) -> Iterable[AnnotatedImage]:
    """The images of an annotation file.

    Args:
      values: its content.
      classes: the classes.
      files: the images that it may name.
      path: the file, for messages.
      split: the split of its images.

    Raises:
      UserError: an annotation has an image or a category that the file does not list.
    """
    categories = _categories(values, path)
    images = {}
    for image in common.get_list(values, "images", path):
        if _id_of(image, "id") in images:
            raise UserError(f"{path}: two images have id {common.shorten(image.get('id'))}")
        images[_id_of(image, "id")] = image
    by_image = defaultdict(list)
    for position, annotation in enumerate(common.get_list(values, "annotations", path)):
        entry = f"{path}, annotation {common.shorten(annotation.get('id', position))}"
        for key, known, kind in (("image_id", images, "image"), ("category_id", categories, "category")):
            if _id_of(annotation, key) not in known:
                raise UserError(
                    f"{entry} has {kind} {common.shorten(annotation.get(key))}, which the file does not list"
                )
        name = categories[_id_of(annotation, "category_id")].get("name")
        by_image[_id_of(annotation, "image_id")].append((entry, annotation, classes.find(name, entry)))
    for key, image in images.items():
        entry = f"{path}, image {common.shorten(image.get('id'))}"
        found = files.find(image.get("file_name"), entry)
        yield AnnotatedImage(
            name=files.output_name(found),
            image=files.path(found),
            entry=entry,
            draw=lambda canvas, shapes=tuple(by_image[key]): _draw(canvas, shapes),
            size=common.get_size(image, "height", "width"),
            split=split,
        )


def _id_of(values: dict[str, Any], key: str) -> Any:
    """An id that can be the key of a dictionary: an integer or text."""
    value = values.get(key)
    return value if isinstance(value, int | str) else None


def _categories(values: dict[str, Any], path: pathlib.Path) -> dict[Any, dict[str, Any]]:
    categories = {}
    for category in common.get_list(values, "categories", path):
        key = _id_of(category, "id")
        if key in categories:
            raise UserError(f"{path}: two categories have id {common.shorten(key)}")
        if not isinstance(category.get("name"), str) or not category["name"].strip():
            raise UserError(f"{path}: category {common.shorten(key)} has no name")
        categories[key] = category
    return categories


def _draw(canvas: Canvas, shapes: Iterable[tuple[str, dict[str, Any], int]]) -> None:
    """Draws annotations, the largest first, after the crowds. An annotation is the union of its polygons."""
    drawn = []
    for entry, annotation, class_id in shapes:
        segmentation = annotation.get("segmentation")
        parts = segmentation if isinstance(segmentation, list) and segmentation else [segmentation]
        masks = []
        for i, part in enumerate(parts):
            name = f"{entry}, polygon {i}" if len(parts) > 1 else entry
            masks.append(canvas.draw(name, functools.partial(fill_part, part)))
        masks = [mask for mask in masks if mask is not None]
        if not masks:
            continue
        mask = functools.reduce(np.logical_or, masks)
        if annotation.get("iscrowd") in (1, True):
            canvas.label[mask] = IGNORE_LABEL
        else:
            drawn.append((class_id, CroppedMask(mask)))
    canvas.paint_smallest_on_top(drawn)


def fill_part(part: object, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Draws a part of a `segmentation`: run lengths, or a polygon as a list of x and y in turn.

    Args:
      part: its value.
      size: (height, width) of the image.

    Raises:
      DegenerateShape: it is missing or damaged, or covers no area.
    """
    if isinstance(part, dict):
        return decode_coco(part, size)
    if not part:
        raise DegenerateShape("it has no segmentation")
    if not isinstance(part, list) or len(part) % 2:
        raise DegenerateShape("its polygon is not a list of x and y in turn")
    return fill_coco(check_points(list(zip(part[::2], part[1::2], strict=True)), size), size)


def write(labels: Iterable[LabeledImage], folder: pathlib.Path) -> None:
    """Writes `instances.json`. The id of a category is its class id.

    Args:
      labels: the images and their labels, of the same classes.
      folder: where to write it.
    """
    images, shapes, categories = [], [], {}
    for image_id, labeled in enumerate(labels, 1):
        height, width = labeled.label.shape
        images.append({"id": image_id, "file_name": labeled.name, "height": height, "width": width})
        categories |= labeled.exported_classes()
        for class_id, polygon in labeled.polygons():
            left, top = polygon.min(0).tolist()
            right, bottom = polygon.max(0).tolist()
            shapes.append(
                {
                    "id": len(shapes) + 1,
                    "image_id": image_id,
                    "category_id": class_id,
                    "segmentation": [polygon.ravel().tolist()],
                    "area": area(polygon),
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 0,
                }
            )
    listed = [{"id": index, "name": name} for index, name in sorted(categories.items())]
    write_json(folder / "instances.json", {"images": images, "annotations": shapes, "categories": listed})
