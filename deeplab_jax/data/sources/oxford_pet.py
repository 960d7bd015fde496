"""The Oxford-IIIT Pet data set (Parkhi et al., 2012): cats and dogs with trimaps.

The archives contain `images/*.jpg`, `annotations/{trainval,test}.txt` with a name at the start of each line, and
`annotations/trimaps/*.png` with the ids 1 (pet), 2 (background) and 3 (the outline, or undefined). Files that begin
with `._` are not images. Some files named `.jpg` are PNGs or GIFs; they are converted.

There is no official metric for segmentation. Three conventions are in use, whose scores cannot be compared:

- `oxford_pet` has three classes, pet, background and outline, as in the tutorials of TensorFlow and Keras;
- `oxford_pet_binary` has background and pet, and the outline belongs to the pet, as in segmentation_models.pytorch;
- `oxford_pet_ignore` has background and pet, and ignores the outline.
"""

import functools
import pathlib

from deeplab_jax.data.dataset import Dataset, Download, RawDataset, RawExample
from deeplab_jax.data.formats.text_file import read_lines
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.sources import layout
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet

_TITLE = "the Oxford-IIIT Pet data set"

# Checksums of TensorFlow Datasets (datasets/oxford_iiit_pet/checksums.tsv).
ARCHIVES = (
    Download(
        "https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz",
        "sha256:67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
        "oxford_pet_images.tar.gz",
    ),
    Download(
        "https://thor.robots.ox.ac.uk/~vgg/data/pets/annotations.tar.gz",
        "sha256:52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
        "oxford_pet_annotations.tar.gz",
    ),
)

_COLORS = {"pet": (128, 0, 0), "background": (0, 0, 0), "outline": (128, 128, 0)}
_BINARY = LabelSet(("background", "pet"), (_COLORS["background"], _COLORS["pet"]))
LABEL_SET = LabelSet(tuple(_COLORS), tuple(_COLORS.values()))

LABEL_MAP = LabelMap.create(LABEL_SET, ids=[1, 2, 3])
LABEL_MAP_BINARY = LabelMap.create(_BINARY, ids=[2, (1, 3)])
LABEL_MAP_IGNORE = LabelMap.create(_BINARY, ids=[2, 1], ignore_ids=[3])


def read_raw(root: pathlib.Path, *, label_set: LabelSet = LABEL_SET, label_map: LabelMap = LABEL_MAP) -> RawDataset:
    """The splits `trainval` and `test`.

    Args:
      root: a folder that contains `images` and `annotations`.
      label_set: the classes.
      label_map: their ids.

    Raises:
      UserError: the folder does not have the layout of the data set, or a list is wrong.
    """
    root = layout.find_root(root, "annotations/trainval.txt", _TITLE)
    splits = {}
    for split in ("trainval", "test"):
        path = root / "annotations" / f"{split}.txt"
        lines = [line for line in read_lines(path) if line.strip() and not line.startswith("#")]
        splits[split] = [_example(root, path, line, label_map) for line in lines]
    return RawDataset(label_set, splits, label_map=label_map)


def _example(root: pathlib.Path, path: pathlib.Path, line: str, label_map: LabelMap) -> RawExample:
    name = line.split()[0]
    if pathlib.PurePath(name).name != name:
        raise UserError(f"{path} lists {name}, which is not the name of an image")
    mask = root / "annotations" / "trimaps" / f"{name}.png"
    image = root / "images" / f"{name}.jpg"
    return RawExample(name, image, functools.partial(label_map.read, mask), label_files=(mask,))


def _dataset(name: str, label_set: LabelSet, label_map: LabelMap) -> Dataset:
    return Dataset(
        name=name,
        read_raw=functools.partial(read_raw, label_set=label_set, label_map=label_map),
        label_map=label_map,
        archives=ARCHIVES,
        is_needed=lambda name: name.endswith((".jpg", ".png", ".txt")),
        sizes={"trainval": 3680, "test": 3669},
    )


DATASET = _dataset("oxford_pet", LABEL_SET, LABEL_MAP)
DATASET_BINARY = _dataset("oxford_pet_binary", _BINARY, LABEL_MAP_BINARY)
DATASET_IGNORE = _dataset("oxford_pet_ignore", _BINARY, LABEL_MAP_IGNORE)
