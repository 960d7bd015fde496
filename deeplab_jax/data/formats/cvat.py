"""CVAT's exports: `Segmentation mask 1.1` (Pascal VOC's folders and `labelmap.txt`) and `CVAT for images 1.1` (XML).

Its COCO and YOLO exports are read as those formats. CVAT shows images upright, so coordinates are those of the upright
image.
"""

import functools
import pathlib
import xml.etree.ElementTree as ET
from collections.abc import Iterable

import numpy as np

from deeplab_jax.data.formats import cvat_xml
from deeplab_jax.data.formats.annotations import AnnotatedImage, Annotations, Export
from deeplab_jax.data.formats.canvas import Canvas
from deeplab_jax.data.formats.class_list import ClassList, read_classes
from deeplab_jax.data.formats.labeled_image import LabeledImage
from deeplab_jax.data.formats.text_file import read_lines
from deeplab_jax.data.image_files import list_images
from deeplab_jax.data.mask_reading import MaskReading, decide
from deeplab_jax.data.mask_survey import Survey
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import IGNORE_LABEL

_LABELMAP, _LISTS = "labelmap.txt", "ImageSets/Segmentation"
_IMAGES, _MASKS = "JPEGImages", "SegmentationClass"
_XML = "annotations.xml"


def recognize(root: pathlib.Path) -> bool:
    """Whether a folder is an export in this format."""
    return recognize_masks(root) or (root / _XML).is_file()


def recognize_masks(root: pathlib.Path) -> bool:
    """Whether a folder is an export as masks."""
    return (root / _LABELMAP).is_file() and (root / _MASKS).is_dir()


def read(export: Export) -> Annotations:
    """Reads an export.

    Raises:
      UserError: a file is missing or damaged.
    """
    if recognize_masks(export.root) and (export.source.is_dir() or export.source.name == _LABELMAP):
        return read_masks(export)
    paths = export.find("*.xml")
    paths = [path for path in paths if path.name == _XML] or paths
    if not paths:
        raise UserError(f"{export.source} has neither {_LABELMAP} and {_MASKS}/ nor {_XML}; it is not a CVAT export")
    contents = [(path, cvat_xml.parse(path)) for path in paths]
    labels = [label for _, content in contents for label in content.labels]
    classes = export.read_classes(labels, paths[0])
    files = export.find_images()
    images = [image for path, content in contents for image in cvat_xml.read_images(content, classes, files, path)]
    return Annotations(classes, images)


def read_masks(export: Export) -> Annotations:
    """Reads an export as masks.

    Raises:
      UserError: a file is missing or damaged, or a mask has a color that `labelmap.txt` does not list.
    """
    listed = read_classes(export.root / _LABELMAP)
    colors = zip(listed.label_set.class_names, listed.label_set.palette, strict=True)
    classes = export.read_classes(colors, export.root / _LABELMAP)
    folder = export.root / _MASKS
    paths, _ = list_images(folder, recursive=True)
    masks = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    if not masks:
        raise UserError(f"{folder} contains no masks")
    reading = decide(Survey(masks.values()), listed)
    ids = np.zeros(256, np.uint8)
    ids[IGNORE_LABEL] = IGNORE_LABEL
    for index, name in enumerate(listed.label_set.class_names):
        ids[index] = classes.find(name, str(export.root / _LABELMAP))
    files = export.find_images(_IMAGES)
    splits = _read_splits(export.root, listed)
    images = []
    for name, path in masks.items():
        found = files.find(name, str(path))
        images.append(
            AnnotatedImage(
                name=files.output_name(found),
                image=files.path(found),
                entry=str(path),
                draw=functools.partial(_draw_mask, path=path, reading=reading, ids=ids),
                split=splits.get(name),
                label_files=(path, export.root / _LABELMAP),
            )
        )
    return Annotations(classes, images, reading.notes)


def _read_splits(root: pathlib.Path, listed: ClassList) -> dict[str, str]:
    """The list of each image, if there are several."""
    paths = sorted((root / _LISTS).glob("*.txt"))
    if len(paths) < 2:
        return {}
    return {line.strip(): path.stem for path in paths for line in read_lines(path) if line.strip()}


def _draw_mask(canvas: Canvas, path: pathlib.Path, reading: MaskReading, ids: np.ndarray) -> None:
    label = reading.read(path)
    canvas.check_size(label.shape, path)
    canvas.label[:] = ids[label]
    canvas.shapes += 1


def write(labels: Iterable[LabeledImage], folder: pathlib.Path) -> None:
    """Writes `annotations.xml` in the format `CVAT for images 1.1`.

    Args:
      labels: the images and their labels, of the same classes.
      folder: where to write it.
    """
    images, names, colors = [], {}, {}
    for index, labeled in enumerate(labels):
        height, width = labeled.label.shape
        image = ET.Element("image", id=str(index), name=labeled.name, width=str(width), height=str(height))
        names |= labeled.exported_classes()
        colors |= dict(enumerate(labeled.label_set.color_table().tolist()))
        for class_id, polygon in labeled.polygons():
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in polygon.tolist())
            values = {"label": names[class_id], "source": "manual", "occluded": "0", "points": points, "z_order": "0"}
            ET.SubElement(image, "polygon", values)
        images.append(image)
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    listed = ET.SubElement(task, "labels")
    for class_id, name in sorted(names.items()):
        label = ET.SubElement(listed, "label")
        ET.SubElement(label, "name").text = name
        ET.SubElement(label, "color").text = "#{:02x}{:02x}{:02x}".format(*colors[class_id])
        ET.SubElement(label, "attributes")
    root.extend(images)
    ET.indent(root)
    write_atomically(folder / _XML, ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
