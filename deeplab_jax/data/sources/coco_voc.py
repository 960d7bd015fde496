"""COCO's 2017 images with the classes of Pascal VOC, on which networks for VOC are pretrained.

The layout is `{train2017,val2017}/*.jpg` or the same in `images/`, and `annotations/instances_{train,val}2017.json`.
The twenty categories that VOC has too are drawn, and everything else is background.

- `coco_voc` draws smaller objects over larger ones, and keeps images with more than 1,000 pixels of the twenty classes,
  as the DeepLab papers do. How they draw overlaps is not published.
- `coco_voc_torchvision` is what torchvision trained its networks on (references/segmentation/coco_utils.py): pixels of
  more than one object are ignored, and training images are kept if the areas of their objects sum to more than 1,000.
"""

import functools
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, UInt8

from deeplab_jax import progress
from deeplab_jax.data.dataset import Dataset, RawDataset, RawExample
from deeplab_jax.data.formats.coco import fill_part
from deeplab_jax.data.formats.rasterize import DegenerateShape
from deeplab_jax.data.sources import coco, layout
from deeplab_jax.errors import UserError
from deeplab_jax.files import file_digest
from deeplab_jax.labels import IGNORE_LABEL, VOC

Overlaps = Literal["smaller", "ignore"]

_MOST_LEFT_OUT = 1000  # pixels of the classes in an image that is left out

#: COCO's category of each class of VOC after the background.
CATEGORIES = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
_CLASSES = {category: index for index, category in enumerate(CATEGORIES, 1)}


def read_raw(root: pathlib.Path, *, overlaps: Overlaps = "smaller") -> RawDataset:
    """The splits `train` and `val`, if their annotations are there.

    Args:
      root: a folder that contains `annotations` and the folders of images.
      overlaps: `smaller` draws smaller objects last, `ignore` follows torchvision.

    Raises:
      UserError: the folder does not have the layout of COCO, or an annotation file is damaged.
    """
    root = layout.find_root(root, "annotations/instances_*2017.json", "COCO")
    splits, digests = {}, []
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        if not path.is_file():
            continue
        digests.append(file_digest(path))
        content = coco.read_annotations(path, ("images", "annotations"))
        images = coco.find_images(root, f"{split}2017")
        shapes = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation.get("category_id") in _CLASSES:
                shapes[annotation.get("image_id")].append(_shape(annotation, path))
        splits[split] = [
            _example(entry, shapes[entry["id"]], images, path, overlaps)
            for entry in progress.track(content["images"], f"read {split}")
            if _is_kept(shapes[entry["id"]], entry, path, overlaps, split)
        ]
    return RawDataset(VOC, splits, rules=f"{overlaps} {' '.join(digests)}")


# The class of an object, its area and its `segmentation`.
_Shape = tuple[int, float, Any]


def _shape(annotation: dict[str, Any], path: pathlib.Path) -> _Shape:
    area = annotation.get("area")
    if not isinstance(area, (int, float)):
        raise UserError(f"{path} is damaged: object {annotation.get('id')} has no area")
    return _CLASSES[annotation["category_id"]], float(area), annotation.get("segmentation")


def _is_kept(
    shapes: Sequence[_Shape], entry: dict[str, Any], path: pathlib.Path, overlaps: Overlaps, split: str
) -> bool:
    """Whether an image has enough pixels of the classes. Draws it only if the areas of its objects leave it open."""
    areas = [area for _, area, _ in shapes]
    if overlaps == "ignore":
        return split != "train" or sum(areas) > _MOST_LEFT_OUT
    if sum(areas) <= _MOST_LEFT_OUT or max(areas) > _MOST_LEFT_OUT:
        return sum(areas) > _MOST_LEFT_OUT
    return int(np.count_nonzero(draw(shapes, coco.image_size(entry, path), overlaps, path))) > _MOST_LEFT_OUT


def _example(
    entry: dict[str, Any], shapes: Sequence[_Shape], images: pathlib.Path, path: pathlib.Path, overlaps: Overlaps
) -> RawExample:
    image = images / coco.file_name(entry.get("file_name"), path)
    return RawExample(image.stem, image, functools.partial(draw, shapes, coco.image_size(entry, path), overlaps, path))


def draw(
    shapes: Sequence[_Shape], size: tuple[int, int], overlaps: Overlaps, path: pathlib.Path
) -> UInt8[np.ndarray, "height width"]:
    """Draws objects as a label.

    Args:
      shapes: the class, area and COCO `segmentation` of each object.
      size: (height, width) of the label.
      overlaps: see `read_raw`.
      path: the annotation file, for messages.

    Raises:
      UserError: a segmentation is damaged.
    """
    label = np.zeros(size, np.uint8)
    if overlaps == "smaller":
        for index, _, segmentation in sorted(shapes, key=lambda shape: -shape[1]):
            label[_mask(segmentation, size, path)] = index
        return label
    counts = np.zeros(size, np.uint16)
    for index, _, segmentation in shapes:
        mask = _mask(segmentation, size, path)
        label[mask] = index
        counts += mask
    label[counts > 1] = IGNORE_LABEL
    return label


def _mask(segmentation: Any, size: tuple[int, int], path: pathlib.Path) -> Bool[np.ndarray, "height width"]:
    """The pixels of polygons or run lengths, as pycocotools draws them."""
    mask = np.zeros(size, bool)
    try:
        for part in segmentation if isinstance(segmentation, list) else [segmentation]:
            mask |= fill_part(part, size)
    except DegenerateShape as error:
        raise UserError(f"{path} is damaged: an object in an image of {size[0]}x{size[1]}: {error}") from None
    return mask


def _dataset(name: str, overlaps: Overlaps) -> Dataset:
    return Dataset(
        name=name,
        read_raw=functools.partial(read_raw, overlaps=overlaps),
        archives=(*coco.IMAGES, coco.INSTANCES),
        is_needed=lambda name: name.endswith(".jpg") or pathlib.PurePosixPath(name).name.startswith("instances_"),
    )


DATASET = _dataset("coco_voc", "smaller")
DATASET_TORCHVISION = _dataset("coco_voc_torchvision", "ignore")
