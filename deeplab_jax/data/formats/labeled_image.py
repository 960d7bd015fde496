"""An image and its label, which the writers of annotation formats turn into polygons."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.data.formats.annotations import BACKGROUND_NAMES
from deeplab_jax.data.formats.class_list import IGNORE_NAME
from deeplab_jax.data.formats.outlines import Ring, find_polygons
from deeplab_jax.labels import IGNORE_LABEL, LabelSet


@dataclasses.dataclass(frozen=True)
class LabeledImage:
    """An image and its label.

    Attributes:
      name: path of the image in its folder, such as `train/a.jpg`.
      image: the image file.
      label: class ids, of the size of the upright image.
      label_set: the classes.
      tolerance: largest distance in pixels between a region and its polygon, see `outlines.find_polygons`.
    """

    name: str
    image: pathlib.Path
    label: UInt8[np.ndarray, "height width"]
    label_set: LabelSet
    tolerance: int | float

    def exported_classes(self) -> dict[int, str]:
        """The name of each class id that is exported: all but the background, and `__ignore__` if it occurs."""
        names = {index: name for index, name in enumerate(self.label_set.class_names) if name not in BACKGROUND_NAMES}
        return names | ({IGNORE_LABEL: IGNORE_NAME} if (self.label == IGNORE_LABEL).any() else {})

    def polygons(self, *, inset: int | float = 0.0) -> Iterator[tuple[int, Ring]]:
        """The class id and the polygon of each region.

        Args:
          inset: see `outlines.find_polygons`.
        """
        for class_id in self.exported_classes():
            for polygon in find_polygons(self.label == class_id, tolerance=self.tolerance, inset=inset):
                yield class_id, polygon.round(2)
