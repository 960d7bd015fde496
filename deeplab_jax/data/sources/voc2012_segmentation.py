"""Pascal VOC 2012 segmentation (Everingham et al.), and `trainaug`, its training set enlarged by SBD.

The archive holds `VOCdevkit/VOC2012/{JPEGImages, SegmentationClass, ImageSets/Segmentation}`: 1,464 training and 1,449
validation images. Masks are palette PNGs whose indices are the classes and 255 the void border.
"""

import functools
import pathlib

from deeplab_jax.data import images
from deeplab_jax.data.builder import Layout, Record, SegmentationBuilder
from deeplab_jax.data.sources import sbd
from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC

URL = "https://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
MD5 = "6cd6e144f989b92b3379bac3b3de84fd"


class Voc2012Segmentation(SegmentationBuilder):
    """TFDS builder of VOC 2012's segmentation task."""


def wanted(name: str) -> bool:
    """Whether an entry of the archive is needed."""
    path = pathlib.PurePosixPath(name)
    return path.parent.name in ("JPEGImages", "SegmentationClass") or path.parts[-3:-1] == ("ImageSets", "Segmentation")


def read_layout(root: pathlib.Path, *, sbd_root: pathlib.Path | None = None) -> Layout:
    """A split for every list under ImageSets/Segmentation, and `trainaug` if an unpacked SBD is given.

    `trainaug` is the papers' training set by set algebra: VOC's train with its own masks, and SBD's train and val with
    SBD's, without VOC's train and val: 1,464 + 9,118 = 10,582 images of the whole data sets.

    Args:
      root: a VOC 2012 folder, at any depth above JPEGImages.
      sbd_root: an unpacked SBD.

    Raises:
      UserError: a folder is not laid out as it should be.
    """
    folders = [path.parent for path in [root / "JPEGImages", *sorted(root.glob("**/JPEGImages"))] if path.is_dir()]
    if not folders:
        raise UserError(f"{root} is not laid out like VOC 2012: there is no JPEGImages folder in it")
    folder = folders[0]
    lists = sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
    if not lists:
        raise UserError(f"{folder} has no lists in ImageSets/Segmentation, which name its splits")
    ids = {path.stem: path.read_text().split() for path in lists}
    splits = {split: [_record(folder, example) for example in examples] for split, examples in ids.items()}
    if sbd_root is not None:
        if not {"train", "val"} <= set(ids):
            raise UserError(f"trainaug needs VOC's lists train.txt and val.txt, which {folder} does not have")
        taken = {*ids["train"], *ids["val"]}
        both = sbd.read_layout(sbd_root).splits
        more = {record.id: record for split in ("train", "val") for record in both.get(split, ())}
        splits["trainaug"] = splits["train"] + [more[example] for example in sorted(set(more) - taken)]
    return Layout(label_set=VOC, splits=splits)


def _record(folder: pathlib.Path, example: str) -> Record:
    return Record(
        id=example,
        image=folder / "JPEGImages" / f"{example}.jpg",
        read_labels=functools.partial(images.read_label_map, folder / "SegmentationClass" / f"{example}.png", VOC),
    )
