"""YOLO polygons, as Ultralytics, Roboflow and CVAT write them: `data.yaml`, images, and a text file for each image.

A line is a class number and the corners of a polygon as fractions of the image: `class x y x y x y ...`. Labels of
`train/images/a.jpg` are in `train/labels/a.txt`. Polygons are drawn as Ultralytics draws them (`polygon2mask`), smaller
ones over larger ones. Lines of five numbers are boxes, which have no outline. Ultralytics turns images upright, so
coordinates are those of the upright image.
"""

import pathlib
from typing import Any

import numpy as np
import yaml

from deeplab_jax import budget
from deeplab_jax.data.formats import annotations as common
from deeplab_jax.data.formats.annotations import AnnotatedImage, Annotations, Export
from deeplab_jax.data.formats.canvas import Canvas, CroppedMask
from deeplab_jax.data.formats.rasterize import DegenerateShape, check_points, fill_opencv
from deeplab_jax.data.formats.text_file import read_lines
from deeplab_jax.errors import UserError

_NAMES = ("data.yaml", "data.yml", "dataset.yaml")


def recognize(root: pathlib.Path) -> bool:
    """Whether a folder is an export in this format."""
    return any((root / name).is_file() for name in _NAMES) and any(True for _ in root.glob("**/labels"))


def read(export: Export) -> Annotations:
    """Reads a data set.

    Raises:
      UserError: a file is missing or damaged, or a line has a class that `data.yaml` does not list.
    """
    listing = export.source if export.source.is_file() else None
    if listing is None:
        listing = next((export.source / name for name in _NAMES if (export.source / name).is_file()), None)
    if listing is None:
        raise UserError(f"{export.source} has no {_NAMES[0]}, which lists the classes")
    names = read_names(listing)
    classes = export.read_classes([(name, None) for name in names.values()], listing)
    files = export.find_images()
    labels = {
        path.relative_to(export.root).as_posix(): path
        for path in Export(export.root).find("*.txt")
        if "labels" in path.relative_to(export.root).parts
    }
    images, missing = [], 0
    for key in files:
        path = labels.pop(_labels_of(key), None)
        if path is None:
            missing += 1
            continue
        images.append(
            AnnotatedImage(
                name=files.output_name(key),
                image=files.path(key),
                entry=str(path),
                draw=lambda canvas, path=path: _draw(canvas, path, names, classes),
            )
        )
    if labels:
        path = next(iter(labels.values()))
        raise UserError(f"{path} has no image; give the folder of the images with --images")
    notes = [f"{missing} images have no labels file and are left out"] if missing else []
    return Annotations(classes, images, tuple(notes))


def _labels_of(key: str) -> str:
    """The labels file of an image, as in Ultralytics: the last folder `images` becomes `labels`."""
    *folders, name = key.split("/")
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        folders[last] = "labels"
    else:
        folders = ["labels", *folders]
    return "/".join([*folders, name.rpartition(".")[0] + ".txt"])


def read_names(path: pathlib.Path) -> dict[int, str]:
    """Reads the class names of `data.yaml`: a list, or numbers and names.

    Raises:
      UserError: the file is damaged, or has no names.
    """
    try:
        content = budget.read_bytes(path, budget.YAML_BYTES)
        values = yaml.safe_load(content.decode())
        names: Any = values["names"]
        names = dict(enumerate(names)) if isinstance(names, list) else {int(key): name for key, name in names.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError):
        raise UserError(f"{path} is damaged, or has no list `names` of class names") from None
    return {key: str(name) for key, name in names.items()}


def _draw(canvas: Canvas, path: pathlib.Path, names: dict[int, str], classes: common.Classes) -> None:
    drawn = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        entry = f"{path}, line {number}"
        key, *values = line.split()
        if not key.isdecimal() or int(key) not in names:
            raise UserError(f"{entry} has class {common.shorten(key)}, which data.yaml does not list")
        class_id = classes.find(names[int(key)], entry)
        mask = canvas.draw(entry, lambda size, values=values: fill_line(values, size))
        if mask is not None:
            drawn.append((class_id, CroppedMask(mask)))
    canvas.paint_smallest_on_top(drawn)


def fill_line(values: list[str], size: tuple[int, int]) -> np.ndarray:
    """Draws the polygon of a line.

    Args:
      values: the coordinates.
      size: (height, width) of the image.

    Raises:
      DegenerateShape: it is a box, or covers no area.
    """
    if len(values) == 4:
        raise DegenerateShape("it is a box, which has no outline")
    if len(values) % 2:
        raise DegenerateShape("it is not a list of x and y in turn")
    try:
        fractions = np.array(values, np.float32).reshape(-1, 2)
    except ValueError:
        raise DegenerateShape("its coordinates are not numbers") from None
    # In float32, as Ultralytics multiplies.
    points = fractions * np.array(size[::-1], np.float32)
    return fill_opencv(check_points(points.tolist(), size), size)
