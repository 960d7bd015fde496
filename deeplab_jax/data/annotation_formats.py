"""The formats of annotation tools, by name."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable

from deeplab_jax.data.formats import coco, cvat, label_studio, labelme, roboflow, supervisely, yolo
from deeplab_jax.data.formats.annotations import Annotations, Export
from deeplab_jax.data.formats.labeled_image import LabeledImage
from deeplab_jax.errors import UserError, suggest


@dataclasses.dataclass(frozen=True)
class AnnotationFormat:
    """A format.

    Attributes:
      name: its name on the command line.
      tool: the tool or data set, for messages.
      recognize: whether a folder is an export in this format.
      read: reads an export.
      recognize_masks: whether a folder is an export with masks that `folder` reads as they are.
      write: writes labels as annotations; None if there is no writer.
    """

    name: str
    tool: str
    recognize: Callable[[pathlib.Path], bool]
    read: Callable[[Export], Annotations]
    recognize_masks: Callable[[pathlib.Path], bool] = lambda root: False
    write: Callable[[Iterable[LabeledImage], pathlib.Path], None] | None = None


#: All formats. Where a folder fits several, the first one is meant.
ANNOTATION_FORMATS = {
    listed.name: listed
    for listed in (
        AnnotationFormat("coco", "COCO", coco.recognize, coco.read, write=coco.write),
        AnnotationFormat("cvat", "CVAT", cvat.recognize, cvat.read, cvat.recognize_masks, cvat.write),
        AnnotationFormat("roboflow", "Roboflow", roboflow.recognize, roboflow.read, roboflow.recognize),
        AnnotationFormat("yolo", "YOLO", yolo.recognize, yolo.read),
        AnnotationFormat("supervisely", "Supervisely", supervisely.recognize, supervisely.read),
        AnnotationFormat("label-studio", "Label Studio", label_studio.recognize, label_studio.read),
        AnnotationFormat("labelme", "LabelMe", labelme.recognize, labelme.read, write=labelme.write),
    )
}


def find_format(name: str, *, writable: bool = False) -> AnnotationFormat:
    """Returns the format of a name.

    Args:
      name: its name.
      writable: it needs a writer.

    Raises:
      UserError: there is no such format.
    """
    names = [key for key, listed in ANNOTATION_FORMATS.items() if listed.write is not None or not writable]
    if name not in names:
        kind = "annotations are not exported to" if writable else "there is no annotation format"
        raise UserError(f"{kind} {name!r}{suggest(name, names)}")
    return ANNOTATION_FORMATS[name]


def recognize_format(root: pathlib.Path) -> AnnotationFormat | None:
    """Returns the format that a folder is an export in; None if it is not an export."""
    return next((listed for listed in ANNOTATION_FORMATS.values() if listed.recognize(root)), None)
