"""Roboflow's semantic segmentation masks: in each split `_classes.csv`, images, and `a_mask.png` for `a.jpg`.

The values of a mask are the numbers in `_classes.csv`. Value 0 is the background, whatever its name.
"""

import csv
import functools
import pathlib

import numpy as np

from deeplab_jax.data import masks
from deeplab_jax.data.formats import annotations as common
from deeplab_jax.data.formats.annotations import AnnotatedImage, Annotations, Classes, Export
from deeplab_jax.data.formats.canvas import Canvas
from deeplab_jax.data.formats.file_names import normalize
from deeplab_jax.data.formats.text_file import read_lines
from deeplab_jax.errors import UserError

_CLASSES, _MASK = "_classes.csv", "_mask.png"


def recognize(root: pathlib.Path) -> bool:
    """Whether a folder is an export in this format."""
    return any(True for pattern in (_CLASSES, f"*/{_CLASSES}") for _ in root.glob(pattern))


def read(export: Export) -> Annotations:
    """Reads an export.

    Raises:
      UserError: a file is missing or damaged.
    """
    tables = {path: read_table(path) for path in export.find(_CLASSES)}
    if not tables:
        raise UserError(f"{export.source} has no {_CLASSES}, which lists the classes")
    names = [(name, None) for table in tables.values() for name in table.values()]
    classes = export.read_classes(names, next(iter(tables)))
    files = export.find_images()
    keys = {files.path(key): key for key in files if not key.endswith(_MASK)}
    images, without = [], 0
    for path, table in tables.items():
        stems = {normalize(image.stem): image for image in keys if image.parent == path.parent}
        for mask in sorted(path.parent.glob(f"*{_MASK}")):
            image = stems.pop(normalize(mask.name.removesuffix(_MASK)), None)
            if image is None:
                raise UserError(f"{mask} has no image; {mask.name.removesuffix(_MASK)}.jpg is expected beside it")
            images.append(
                AnnotatedImage(
                    name=files.output_name(keys[image]),
                    image=image,
                    entry=str(mask),
                    draw=functools.partial(
                        _draw, mask=common.check_inside(mask, export.root), table=table, classes=classes
                    ),
                    label_files=(mask, path),
                )
            )
        without += len(stems)
    notes = [f"{without} images have no mask and are left out"] if without else []
    return Annotations(classes, images, tuple(notes))


def read_table(path: pathlib.Path) -> dict[int, str]:
    """Reads `_classes.csv`: the class name of each value.

    Raises:
      UserError: a line is not a number and a name.
    """
    table = {}
    for number, row in enumerate(csv.reader(read_lines(path)), 1):
        row = [cell.strip() for cell in row]
        if number == 1 and row[:1] == ["Pixel Value"] or not any(row):
            continue
        if len(row) != 2 or not row[0].isdecimal() or not row[1] or int(row[0]) in table:
            raise UserError(f"{path}, line {number} is not a value that occurs once and a class name")
        table[int(row[0])] = common.BACKGROUND if int(row[0]) == 0 else row[1]
    return table


def _draw(canvas: Canvas, mask: pathlib.Path, table: dict[int, str], classes: Classes) -> None:
    stored = masks.load_mask(mask)
    if stored.kind == "RGB":
        raise UserError(f"mask {mask} is RGB; export it again as semantic segmentation masks")
    canvas.check_size(stored.values.shape, mask)
    for value in np.unique(stored.values).tolist():
        if value not in table:
            raise UserError(f"mask {mask} contains value {value}, which {_CLASSES} does not list")
        canvas.label[stored.values == value] = classes.find(table[value], str(mask))
        canvas.shapes += 1
