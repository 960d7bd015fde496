"""Pascal VOC 2012 segmentation (Everingham et al.), and `trainaug`, its training set extended with SBD.

The archive contains `VOCdevkit/VOC2012/{JPEGImages, SegmentationClass, ImageSets/Segmentation}`: 1,464 training and
1,449 validation images. Masks are palette PNGs whose indices are the class ids; object borders have the ignore label.
"""

import functools
import pathlib

from deeplab_jax.data import masks
from deeplab_jax.data.dataset import Dataset, Download, RawDataset, RawExample
from deeplab_jax.data.formats.text_file import read_names
from deeplab_jax.data.sources import sbd
from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC

ARCHIVE = Download(
    url="https://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    digest="md5:6cd6e144f989b92b3379bac3b3de84fd",
)


def is_needed(name: str) -> bool:
    """Whether to unpack a file of the archive."""
    path = pathlib.PurePosixPath(name)
    return path.parent.name in ("JPEGImages", "SegmentationClass") or path.parts[-3:-1] == ("ImageSets", "Segmentation")


def read_raw(root: pathlib.Path, *, sbd_root: pathlib.Path | None = None) -> RawDataset:
    """The splits of VOC 2012: one per list in ImageSets/Segmentation, and `trainaug` if SBD is given.

    `trainaug` is the training set of the papers: VOC's train with VOC's masks, then the images of SBD's train and val
    that are not in VOC's train or val, with SBD's masks. The complete data sets give 1,464 + 9,118 = 10,582 images.

    Args:
      root: a folder that contains JPEGImages at any depth.
      sbd_root: folder of an unpacked SBD.

    Raises:
      UserError: a folder does not have the expected layout.
    """
    folders = [path.parent for path in [root / "JPEGImages", *sorted(root.glob("**/JPEGImages"))] if path.is_dir()]
    if not folders:
        raise UserError(f"{root} does not have the layout of VOC 2012: it has no JPEGImages folder")
    folder = folders[0]
    lists = sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
    if not lists:
        raise UserError(f"{folder} has no lists of its splits in ImageSets/Segmentation")
    ids = {path.stem: read_names(path) for path in lists}
    splits = {split: [_example(folder, name) for name in names] for split, names in ids.items()}
    if sbd_root is not None:
        if not {"train", "val"} <= set(ids):
            raise UserError(f"trainaug needs VOC's lists train.txt and val.txt, but {folder} does not have them")
        taken = {*ids["train"], *ids["val"]}
        sbd_splits = sbd.read_raw(sbd_root).splits
        more = {example.id: example for split in ("train", "val") for example in sbd_splits.get(split, ())}
        splits["trainaug"] = splits["train"] + [more[name] for name in sorted(set(more) - taken)]
    return RawDataset(label_set=VOC, splits=splits)


def _example(folder: pathlib.Path, name: str) -> RawExample:
    return RawExample(
        id=name,
        image=folder / "JPEGImages" / f"{name}.jpg",
        read_label=functools.partial(masks.read_mask, folder / "SegmentationClass" / f"{name}.png", VOC),
        label_files=(folder / "SegmentationClass" / f"{name}.png",),
    )


DATASET = Dataset(
    name="voc2012_segmentation",
    read_raw=read_raw,
    options=("sbd_root",),
    archives=(ARCHIVE,),
    is_needed=is_needed,
    sizes={"train": 1464, "val": 1449, "trainaug": 10582},
)
