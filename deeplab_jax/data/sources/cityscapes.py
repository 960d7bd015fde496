"""Cityscapes (Cordts et al., 2016): street scenes of 2048x1024 with 19 classes.

The archives unpack to `leftImg8bit/{split}/{city}/{name}_leftImg8bit.png` and `gtFine/{split}/{city}/` or
`gtCoarse/{split}/{city}/` with `{name}_gtFine_labelIds.png`. The masks with the ids of the 19 classes,
`*_labelTrainIds.png`, are not in the archives; they are not needed, because the label map makes them of the label ids
(`cityscapesscripts/helpers/labels.py`).
"""

import functools
import pathlib

from deeplab_jax.data.dataset import Dataset, RawDataset, RawExample
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.sources import layout
from deeplab_jax.labels import CITYSCAPES

_TITLE = "Cityscapes"

#: Label ids of the classes in order, and those that are not scored. Predictions for the test server have label ids.
LABEL_MAP = LabelMap.create(
    CITYSCAPES,
    ids=[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33],
    ignore_ids=[0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30],
)

# Folder of images, folder of masks and its split, by the name of the split here.
_SPLITS = {
    "train": ("gtFine", "train"),
    "val": ("gtFine", "val"),
    "train_coarse": ("gtCoarse", "train"),
    "val_coarse": ("gtCoarse", "val"),
    "train_extra": ("gtCoarse", "train_extra"),
}


def read_raw(root: pathlib.Path) -> RawDataset:
    """The splits whose masks are there: `train` and `val`, and `train_coarse`, `val_coarse` and `train_extra`.

    The masks of the test split are not published.

    Raises:
      UserError: the folder does not have the layout of Cityscapes.
    """
    root = layout.find_root(root, "leftImg8bit", _TITLE)
    splits = {}
    for split, (kind, folder) in _SPLITS.items():
        cities = root / kind / folder
        if cities.is_dir():
            images = [path for city in sorted((root / "leftImg8bit" / folder).glob("*/")) for path in _images(city)]
            splits[split] = [_example(path, cities, kind) for path in images]
    layout.check_splits(splits, root, _TITLE, [f"{kind}/{folder}" for kind, folder in _SPLITS.values()])
    return RawDataset(CITYSCAPES, splits, label_map=LABEL_MAP)


def _images(city: pathlib.Path) -> list[pathlib.Path]:
    return layout.list_files(city, "_leftImg8bit.png")


def _example(image: pathlib.Path, cities: pathlib.Path, kind: str) -> RawExample:
    name = image.name.removesuffix("_leftImg8bit.png")
    mask = cities / image.parent.name / f"{name}_{kind}_labelIds.png"
    return RawExample(name, image, functools.partial(LABEL_MAP.read, mask), label_files=(mask,))


DATASET = Dataset(
    name="cityscapes",
    read_raw=read_raw,
    label_map=LABEL_MAP,
    archive_names=("leftImg8bit_*.zip", "gtFine_trainvaltest.zip", "gtCoarse.zip"),
    publisher="https://www.cityscapes-dataset.com (after registration)",
    is_needed=lambda name: name.endswith(("_leftImg8bit.png", "_labelIds.png")),
    sizes={"train": 2975, "val": 500, "train_coarse": 2975, "val_coarse": 500, "train_extra": 19998},
)
