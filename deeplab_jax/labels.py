"""Class names, palettes and the ignore label."""

import colorsys
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from deeplab_jax.errors import UserError, suggest

#: The label of unlabeled pixels, in mask files, in batches and in the metrics.
IGNORE_LABEL = 255

_SHOWN = 6  # class names in the repr of a label set


def voc_palette(num_colors: int) -> UInt8[np.ndarray, "num_colors 3"]:
    """Returns the color map of Pascal VOC's palette PNGs for ids 0 to `num_colors - 1`.

    Bit 3j + c of the id becomes bit 7 - j of channel c (VOC development kit, `VOClabelcolormap`).
    Id 255, the ignore label, is (224, 224, 192).
    """
    ids = np.arange(num_colors)
    palette = np.zeros((num_colors, 3), np.uint8)
    for bit in range(3):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


#: RGB color of unlabeled pixels in masks and overlays.
IGNORE_COLOR = tuple(int(value) for value in voc_palette(256)[IGNORE_LABEL])


@dataclasses.dataclass(frozen=True, repr=False)
class LabelSet:
    """The classes of a data set.

    Attributes:
      class_names: one name per class; the position of a name is the class id.
      palette: one RGB color per class.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self):
        if len(self.class_names) != len(self.palette):
            raise ValueError(f"{len(self.class_names)} class names but {len(self.palette)} colors")
        if len(self.class_names) > IGNORE_LABEL:
            raise ValueError(f"{len(self.class_names)} classes; at most {IGNORE_LABEL} fit below the ignore label")
        for name, color in zip(self.class_names, self.palette, strict=True):
            if len(color) != 3 or not all(0 <= value <= 255 for value in color):
                raise ValueError(f"class {name!r:.40} has the color {color!r:.40}, not three integers from 0 to 255")

    def __repr__(self) -> str:
        return f"LabelSet({self.num_classes} classes: {self.shown_names})"

    @property
    def shown_names(self) -> str:
        """The names, or the first and last of many, for one line of text."""
        names = self.class_names
        return ", ".join(names if len(names) <= _SHOWN else (*names[: _SHOWN - 2], "...", names[-1]))

    @property
    def num_classes(self) -> int:
        """Number of classes. Includes the background, not the ignore label."""
        return len(self.class_names)

    def class_ids(self, classes: Sequence[str | int] | None) -> Int[np.ndarray, "chosen"]:
        """Returns the ids of the given names and ids, in ascending order; of all classes for None.

        Raises:
          UserError: there is none, or one does not exist.
        """
        if classes is None:
            return np.arange(self.num_classes)
        ids = set()
        for given in [classes] if isinstance(classes, str) else classes:
            text = str(given)
            if text in self.class_names:
                ids.add(self.class_names.index(text))
            elif text.isdecimal() and int(text) < self.num_classes:
                ids.add(int(text))
            else:
                raise UserError(f"class {text!r} does not exist{suggest(text, self.class_names)}")
        if not ids:
            raise UserError(f"classes is empty; name some of {', '.join(self.class_names)}")
        return np.array(sorted(ids))

    def color_table(self) -> UInt8[np.ndarray, "256 3"]:
        """Returns the RGB color of every uint8 label: the palette, black for unused ids, `IGNORE_COLOR` for 255."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.palette
        table[IGNORE_LABEL] = IGNORE_COLOR
        return table

    @classmethod
    def from_json(cls, class_names: Any, palette: Any) -> "LabelSet":
        """Creates a label set from the values of a JSON file, which may be of any type.

        Raises:
          ValueError, TypeError: the values are not a list of texts and as many lists of three integers from 0 to 255.
        """
        for name in class_names:
            if not isinstance(name, str):
                raise ValueError(f"class name {name!r:.40} is not text")
        for color in palette:
            if not isinstance(color, list) or not all(type(value) is int for value in color):
                raise ValueError(f"color {color!r:.40} is not a list of three integers from 0 to 255")
        return cls(tuple(class_names), tuple(tuple(color) for color in palette))

    @classmethod
    def from_names(cls, class_names: tuple[str, ...] | list[str]) -> "LabelSet":
        """Creates a label set and its palette: VOC's colors for up to 21 classes, evenly spaced hues for more."""
        count = len(class_names)
        if count <= len(VOC_CLASS_NAMES):
            colors = voc_palette(count)
        else:
            hues = [
                colorsys.hsv_to_rgb(i / count, 0.55 + 0.45 * (i % 2), 0.95 - 0.3 * (i % 3) / 2) for i in range(count)
            ]
            colors = np.round(255 * np.asarray(hues)).astype(np.uint8)
        return cls(tuple(class_names), tuple(tuple(int(v) for v in color) for color in colors))


#: Class names of Pascal VOC, ids 0 to 20.
VOC_CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

#: Classes of Pascal VOC and SBD, with VOC's palette.
VOC = LabelSet.from_names(VOC_CLASS_NAMES)

#: CamVid's eleven classes in SegNet's version; its twelfth, "unlabeled", is the ignore label here.
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

#: The nineteen classes of Cityscapes that are scored, in the order of its train ids.
CITYSCAPES = LabelSet(
    class_names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0),
        (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
)  # fmt: skip

# The benchmark's colors, as in MMSegmentation (mmseg/datasets/ade.py). Two classes share one of them.
_ADE20K_COLORS = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652
8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0
ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff
8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff
00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff
ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff
00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070
5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500
0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff
b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""

#: The 150 classes of ADE20K's scene parsing benchmark, by their short names: id 1 of its masks is class 0 here.
ADE20K = LabelSet(
    (
        "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
        "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
        "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
        "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
        "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand",
        "path", "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge",
        "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove",
        "palm", "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus",
        "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television receiver",
        "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle",
        "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything",
        "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven",
        "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher",
        "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan",
        "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
    ),
    tuple(tuple(bytes.fromhex(color)) for color in _ADE20K_COLORS.split()),
)  # fmt: skip

#: Classes of the synthetic data set.
SYNTHETIC = LabelSet.from_names(("background", "disk", "ring", "triangle", "star", "bar"))
