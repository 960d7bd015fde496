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

# The benchmark's colors, as in MMSegmentation (mmseg/datasets/ade.py). Two classes share one of them.
_COLORS = """
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
_PALETTE = tuple(tuple(bytes.fromhex(color)) for color in _COLORS.split())

LABEL_SET = LabelSet(ADE20K.class_names, _PALETTE)
LABEL_SET_151 = LabelSet(("other", *ADE20K.class_names), ((0, 0, 0), *_PALETTE))

LABEL_MAP = LabelMap.create(LABEL_SET, reduce_zero_label=True)
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
    label_set, label_map = (LABEL_SET_151, LABEL_MAP_151) if with_other else (LABEL_SET, LABEL_MAP)
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
