"""Pascal Context (Mottaghi et al., 2014): VOC 2010's images with 59 classes and background.

Labels are read in the first of three layouts that is next to `JPEGImages`:

- `SegmentationClassContext/*.png` with the ids 0 to 59 and the lists `ImageSets/SegmentationContext/{train,val}.txt`,
  as detail-api and MMSegmentation write them;
- `trainval_merged.json`, the annotations of detail-api: run lengths with the same ids among the 459 as the next layout,
  of which later ones cover earlier ones, and the split of each image in `phase`;
- the published `trainval/*.mat`, with 459 classes in `LabelMap`, and VOC's lists `ImageSets/Main/{train,val}.txt`.

The 59 classes are numbered in the order of their ids among the 459, which is alphabetical. The published
`59_labels.txt`, and the lists of older versions of MMSegmentation, begin with VOC's classes: their names do not belong
to these ids.

- `pascal_context` has 60 classes, of which 0 is background: everything that is not one of the 59.
- `pascal_context_59` ignores the background.
"""

import dataclasses
import functools
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from deeplab_jax import budget
from deeplab_jax.data.dataset import Dataset, RawDataset, RawExample
from deeplab_jax.data.formats.coco import fill_part
from deeplab_jax.data.formats.rasterize import DegenerateShape
from deeplab_jax.data.formats.text_file import read_names
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.sources import coco, layout
from deeplab_jax.errors import UserError
from deeplab_jax.files import file_digest
from deeplab_jax.labels import LabelSet, voc_palette

_TITLE = "Pascal Context"
_JSON = "trainval_merged.json"

LABEL_SET = LabelSet(
    (
        "background", "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle",
        "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup",
        "curtain", "dog", "door", "fence", "floor", "flower", "food", "grass", "ground", "horse", "keyboard",
        "light", "motorbike", "mountain", "mouse", "person", "plate", "platform", "pottedplant", "road", "rock",
        "sheep", "shelves", "sidewalk", "sign", "sky", "snow", "sofa", "table", "track", "train", "tree", "truck",
        "tvmonitor", "wall", "water", "window", "wood",
    ),
    tuple(tuple(int(value) for value in color) for color in voc_palette(60)),
)  # fmt: skip
LABEL_SET_59 = LabelSet(LABEL_SET.class_names[1:], LABEL_SET.palette[1:])

LABEL_MAP = LabelMap.create(LABEL_SET)
LABEL_MAP_59 = LabelMap.create(LABEL_SET_59, reduce_zero_label=True)

# The ids of background and the 59 classes among the 459 (MMSegmentation, tools/dataset_converters/pascal_context.py).
_IDS_459 = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158,
    159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366,
    368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
_OTHERS = sorted(set(range(460)) - set(_IDS_459) - {255})

# 255 is one of the 459 classes here, not the ignore label.
_MAP_459 = LabelMap.create(LABEL_SET, ids=[[0, *_OTHERS, 255], *_IDS_459[1:]])
_MAP_459_59 = LabelMap.create(LABEL_SET_59, ids=_IDS_459[1:], ignore_ids=[0, *_OTHERS, 255])


def read_raw(root: pathlib.Path, *, with_background: bool = True) -> RawDataset:
    """The splits `train` and `val`.

    Args:
      root: a folder that contains JPEGImages.
      with_background: background is class 0; otherwise it is ignored.

    Raises:
      UserError: the folder does not have any of the layouts, or a file is damaged.
    """
    root = layout.find_root(root, "JPEGImages", _TITLE)
    label_set = LABEL_SET if with_background else LABEL_SET_59
    if (root / "SegmentationClassContext").is_dir():
        label_map = LABEL_MAP if with_background else LABEL_MAP_59
        folder, suffix, lists = root / "SegmentationClassContext", ".png", "SegmentationContext"
        read = label_map.read
    elif (root / _JSON).is_file():
        return _read_json(root, label_set, _MAP_459 if with_background else _MAP_459_59)
    else:
        label_map = _MAP_459 if with_background else _MAP_459_59
        folder, suffix, lists = root / "trainval", ".mat", "Main"
        read = functools.partial(_read_mat, label_map)
        if not folder.is_dir():
            raise UserError(
                f"{root} does not have the layout of {_TITLE}: it has none of SegmentationClassContext/*.png, {_JSON} "
                "and trainval/*.mat"
            )
    splits = {}
    for split in ("train", "val"):
        names = read_names(root / "ImageSets" / lists / f"{split}.txt")
        splits[split] = [
            RawExample(
                name,
                root / "JPEGImages" / f"{name}.jpg",
                functools.partial(read, folder / f"{name}{suffix}"),
                label_files=(folder / f"{name}{suffix}",),
            )
            for name in names
        ]
    return RawDataset(label_set, splits, label_map=label_map)


def _read_mat(label_map: LabelMap, path: pathlib.Path) -> np.ndarray:
    return label_map.apply(layout.read_mat(path, "LabelMap"), path)


# The id among the 459 and the run lengths of a region.
_Region = tuple[int, Any]


def _read_json(root: pathlib.Path, label_set: LabelSet, label_map: LabelMap) -> RawDataset:
    path = root / _JSON
    # It also has parts and occlusions.
    content = coco.read_annotations(path, ("images", "annos_segmentation"), max_bytes=2 * budget.ANNOTATION_BYTES)
    regions = defaultdict(list)
    for entry in content["annos_segmentation"]:
        if type(entry.get("category_id")) is not int:
            raise UserError(f"{path} is damaged: region {entry.get('id')!r:.40} has no category")
        regions[entry.get("image_id")].append((entry["category_id"], entry.get("segmentation")))
    splits = {"train": [], "val": []}
    for entry in content["images"]:
        if entry.get("phase") in splits:
            image = root / "JPEGImages" / coco.file_name(entry.get("file_name"), path)
            draw = functools.partial(
                _draw, regions[entry.get("image_id")], coco.image_size(entry, path), label_map, path
            )
            splits[entry["phase"]].append(RawExample(image.stem, image, draw))
    return RawDataset(label_set, splits, label_map=label_map, rules=file_digest(path))


def _draw(
    regions: Sequence[_Region], size: tuple[int, int], label_map: LabelMap, path: pathlib.Path
) -> UInt8[np.ndarray, "height width"]:
    ids = np.zeros(size, np.int64)
    for category, segmentation in regions:
        try:
            ids[fill_part(segmentation, size)] = category
        except DegenerateShape as error:
            raise UserError(f"{path} is damaged: a region in an image of {size[0]}x{size[1]}: {error}") from None
    return label_map.apply(ids, path)


DATASET = Dataset(
    name="pascal_context",
    read_raw=read_raw,
    label_map=LABEL_MAP,
    archive_names=("VOCtrainval_03-May-2010.tar", "trainval.tar.gz"),
    publisher="https://cs.stanford.edu/~roozbeh/pascal-context (with VOC 2010)",
    sizes={"train": 4998, "val": 5105},
)
DATASET_59 = dataclasses.replace(
    DATASET,
    name="pascal_context_59",
    read_raw=functools.partial(read_raw, with_background=False),
    label_map=LABEL_MAP_59,
)
