"""Class names, palettes and the void label of every data set."""

import colorsys
import dataclasses

import numpy as np
from jaxtyping import UInt8

#: Pixels that nobody annotated. The same value from the mask file to the metric.
IGNORE_LABEL = 255


def voc_palette(num_colors: int) -> UInt8[np.ndarray, "num_colors 3"]:
    """The color map of Pascal VOC's palette PNGs, for ids 0 to num_colors - 1.

    Bit 3j + c of the id becomes bit 7 - j of channel c (VOC development kit, `VOClabelcolormap`).
    Id 255, the void label, is (224, 224, 192).
    """
    ids = np.arange(num_colors)
    palette = np.zeros((num_colors, 3), np.uint8)
    for bit in range(3):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


#: RGB in which void pixels are drawn.
IGNORE_COLOR = tuple(int(value) for value in voc_palette(256)[IGNORE_LABEL])


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """The classes of a data set: ids are positions in `class_names`; `palette` holds one RGB color per class."""

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self):
        if len(self.class_names) != len(self.palette):
            raise ValueError(f"{len(self.class_names)} class names but {len(self.palette)} colors")
        if len(self.class_names) > IGNORE_LABEL:
            raise ValueError(f"{len(self.class_names)} classes do not fit below the void label {IGNORE_LABEL}")

    @property
    def num_classes(self) -> int:
        """How many classes there are, background included, void not."""
        return len(self.class_names)

    def color_table(self) -> UInt8[np.ndarray, "256 3"]:
        """RGB of every uint8 label: the palette, black for unused ids, the void color for 255."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.palette
        table[IGNORE_LABEL] = IGNORE_COLOR
        return table

    @classmethod
    def from_names(cls, class_names: tuple[str, ...] | list[str]) -> "LabelSet":
        """A label set with a palette made for it: VOC's up to 21 classes, evenly spread hues beyond."""
        count = len(class_names)
        if count <= len(VOC_CLASS_NAMES):
            colors = voc_palette(count)
        else:
            hues = [
                colorsys.hsv_to_rgb(i / count, 0.55 + 0.45 * (i % 2), 0.95 - 0.3 * (i % 3) / 2) for i in range(count)
            ]
            colors = np.round(255 * np.asarray(hues)).astype(np.uint8)
        return cls(tuple(class_names), tuple(tuple(int(v) for v in color) for color in colors))


#: Pascal VOC's classes, ids 0 to 20.
VOC_CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

#: Pascal VOC and SBD, in VOC's palette.
VOC = LabelSet.from_names(VOC_CLASS_NAMES)

#: SegNet's eleven classes; its twelfth id, "unlabeled", is void here.
CAMVID = LabelSet(
    class_names=(
        "sky", "building", "pole", "road", "pavement", "tree",
        "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip

#: The shapes of deeplab_jax.data.sources.synthetic.
SYNTHETIC = LabelSet.from_names(("background", "disk", "ring", "triangle", "star", "bar"))
