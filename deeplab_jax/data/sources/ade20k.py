"""ADE20K as the scene parsing benchmark has it (Zhou et al., 2017): 150 classes.

The archive contains `ADEChallengeData2016/{images,annotations}/{training,validation}`: 20,210 training and 2,000
validation images. Masks have the ids 1 to 150, and 0 for everything else, which is ignored.

- `ade20k` has 150 classes, numbered from 0: `reduce_zero_label`, as in MMSegmentation, SegFormer and Hugging Face.
- `ade20k_151` has 151 classes with the ids of the masks, as in research/deeplab. Class 0, "other", is ignored, so it
  has no pixels; checkpoints with 151 logits need it.
"""

import dataclasses
import functools
import pathlib

from deeplab_jax.data.dataset import Dataset, Download, RawDataset, RawExample
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.sources import layout
from deeplab_jax.labels import ADE20K, LabelSet

_TITLE = "ADE20K's scene parsing benchmark"

# The checksum is GluonCV's (scripts/datasets/ade20k.py).
ARCHIVE = Download(
    url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    digest="sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
)

LABEL_SET_151 = LabelSet(("other", *ADE20K.class_names), ((0, 0, 0), *ADE20K.palette))

LABEL_MAP = LabelMap.create(ADE20K, reduce_zero_label=True)
LABEL_MAP_151 = LabelMap.create(LABEL_SET_151, ignore_ids=[0])

_SPLITS = {"train": "training", "val": "validation"}


def read_raw(root: pathlib.Path, *, with_other: bool = False) -> RawDataset:
    """The splits `train` and `val`.

    Args:
      root: a folder that contains `images` and `annotations`.
      with_other: number the classes as the masks do, with class 0 for "other".

    Raises:
      UserError: the folder does not have the layout of the benchmark.
    """
    root = layout.find_root(root, "annotations/training", _TITLE)
    label_set, label_map = (LABEL_SET_151, LABEL_MAP_151) if with_other else (ADE20K, LABEL_MAP)
    splits = {
        split: [
            _example(image, root / "annotations" / folder, label_map)
            for image in layout.list_files(root / "images" / folder, ".jpg")
        ]
        for split, folder in _SPLITS.items()
    }
    return RawDataset(label_set, splits, label_map=label_map)


def _example(image: pathlib.Path, folder: pathlib.Path, label_map: LabelMap) -> RawExample:
    mask = folder / f"{image.stem}.png"
    return RawExample(image.stem, image, functools.partial(label_map.read, mask), label_files=(mask,))


DATASET = Dataset(
    name="ade20k",
    read_raw=read_raw,
    label_map=LABEL_MAP,
    archives=(ARCHIVE,),
    is_needed=lambda name: "/images/" in name or "/annotations/" in name,
    sizes={"train": 20210, "val": 2000},
)
DATASET_151 = dataclasses.replace(
    DATASET, name="ade20k_151", read_raw=functools.partial(read_raw, with_other=True), label_map=LABEL_MAP_151
)
