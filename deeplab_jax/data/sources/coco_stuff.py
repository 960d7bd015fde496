"""COCO-Stuff (Caesar et al., 2018): COCO's images with 80 classes of things and 91 of stuff.

- `coco_stuff` is COCO-Stuff 164k: `images/{train2017,val2017}/*.jpg`, and `stuffthingmaps_trainval2017.zip` with
  `{train2017,val2017}/*.png`, in a folder of its own or in `annotations/`. Masks have the ids of `labels.txt` minus 1,
  and 255 for unlabeled pixels.
- `coco_stuff10k` is COCO-Stuff 10k, version 1.1: `images/*.jpg`, `annotations/*.mat` with the ids of `labels.txt` and 0
  for unlabeled pixels, and the lists `imageLists/{train,test}.txt`.

Eleven of the 182 ids never occur; the 171 others are numbered in order, as in MMSegmentation.
"""

import functools
import pathlib

import numpy as np

from deeplab_jax.data.dataset import Dataset, RawDataset, RawExample
from deeplab_jax.data.formats.text_file import read_names
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.sources import layout
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet

_TITLE, _TITLE_10K = "COCO-Stuff 164k", "COCO-Stuff 10k"

# labels.txt of nightrome/cocostuff, id 1 first; classes with a star do not occur in the data.
_NAMES = """
person; bicycle; car; motorcycle; airplane; bus; train; truck; boat; traffic light; fire hydrant; street sign*;
stop sign; parking meter; bench; bird; cat; dog; horse; sheep; cow; elephant; bear; zebra; giraffe; hat*; backpack;
umbrella; shoe*; eye glasses*; handbag; tie; suitcase; frisbee; skis; snowboard; sports ball; kite; baseball bat;
baseball glove; skateboard; surfboard; tennis racket; bottle; plate*; wine glass; cup; fork; knife; spoon; bowl;
banana; apple; sandwich; orange; broccoli; carrot; hot dog; pizza; donut; cake; chair; couch; potted plant; bed;
mirror*; dining table; window*; desk*; toilet; door*; tv; laptop; mouse; remote; keyboard; cell phone; microwave;
oven; toaster; sink; refrigerator; blender*; book; clock; vase; scissors; teddy bear; hair drier; toothbrush;
hair brush*; banner; blanket; branch; bridge; building-other; bush; cabinet; cage; cardboard; carpet; ceiling-other;
ceiling-tile; cloth; clothes; clouds; counter; cupboard; curtain; desk-stuff; dirt; door-stuff; fence; floor-marble;
floor-other; floor-stone; floor-tile; floor-wood; flower; fog; food-other; fruit; furniture-other; grass; gravel;
ground-other; hill; house; leaves; light; mat; metal; mirror-stuff; moss; mountain; mud; napkin; net; paper;
pavement; pillow; plant-other; plastic; platform; playingfield; railing; railroad; river; road; rock; roof; rug;
salad; sand; sea; shelf; sky-other; skyscraper; snow; solid-other; stairs; stone; straw; structural-other; table;
tent; textile-other; towel; tree; vegetable; wall-brick; wall-concrete; wall-other; wall-panel; wall-stone;
wall-tile; wall-wood; water-other; waterdrops; window-blind; window-other; wood
"""
_ENTRIES = [name.strip() for name in _NAMES.replace("\n", " ").split(";")]
_IDS = [index for index, name in enumerate(_ENTRIES, 1) if not name.endswith("*")]

LABEL_SET = LabelSet.from_names(tuple(_ENTRIES[index - 1] for index in _IDS))
LABEL_MAP = LabelMap.create(LABEL_SET, ids=[index - 1 for index in _IDS])
LABEL_MAP_10K = LabelMap.create(LABEL_SET, ids=_IDS, ignore_ids=[0])

_MASK_FOLDERS = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations", "")


def read_raw(root: pathlib.Path) -> RawDataset:
    """The splits `train` and `val` of COCO-Stuff 164k.

    Raises:
      UserError: the folder does not have the layout of COCO-Stuff 164k.
    """
    root, folders = _find_images(root)
    splits = {}
    for split, folder in folders.items():
        masks = _find_masks(root, folder.name)
        splits[split] = [_example(image, masks) for image in layout.list_files(folder, ".jpg")]
    return RawDataset(LABEL_SET, splits, label_map=LABEL_MAP)


def _find_images(root: pathlib.Path) -> tuple[pathlib.Path, dict[str, pathlib.Path]]:
    """The folder of the data set, and the folders of images of its splits, `images/train2017` or `train2017`."""
    for base in (root, *sorted(root.glob("*/"))):
        for parent in (base / "images", base):
            folders = {split: parent / f"{split}2017" for split in ("train", "val")}
            found = {split: folder for split, folder in folders.items() if any(folder.glob("*.jpg"))}
            if found:
                return base, found
    raise UserError(f"{root} does not have the layout of {_TITLE}: it has no images in images/val2017")


def _find_masks(root: pathlib.Path, name: str) -> pathlib.Path:
    for folder in _MASK_FOLDERS:
        masks = root / folder / name
        if any(masks.glob("*.png")):
            return masks
    raise UserError(
        f"{root} has no masks for images/{name}; unpack stuffthingmaps_trainval2017.zip into {root / 'stuffthingmaps'}"
    )


def _example(image: pathlib.Path, masks: pathlib.Path) -> RawExample:
    mask = masks / f"{image.stem}.png"
    return RawExample(image.stem, image, functools.partial(LABEL_MAP.read, mask), label_files=(mask,))


def read_raw_10k(root: pathlib.Path) -> RawDataset:
    """The splits `train` and `test` of COCO-Stuff 10k.

    Raises:
      UserError: the folder does not have the layout of COCO-Stuff 10k.
    """
    root = layout.find_root(root, "imageLists/train.txt", _TITLE_10K)
    splits = {}
    for split in ("train", "test"):
        names = read_names(root / "imageLists" / f"{split}.txt")
        splits[split] = [_example_10k(root, name) for name in names]
    return RawDataset(LABEL_SET, splits, label_map=LABEL_MAP_10K)


def _example_10k(root: pathlib.Path, name: str) -> RawExample:
    mask = root / "annotations" / f"{name}.mat"
    image = root / "images" / f"{name}.jpg"
    return RawExample(name, image, functools.partial(_read_mat, mask), label_files=(mask,))


def _read_mat(path: pathlib.Path) -> np.ndarray:
    return LABEL_MAP_10K.apply(layout.read_mat(path, "S"), path)


DATASET = Dataset(
    name="coco_stuff",
    read_raw=read_raw,
    label_map=LABEL_MAP,
    archive_names=("train2017.zip", "val2017.zip", "stuffthingmaps_trainval2017.zip"),
    publisher="https://github.com/nightrome/cocostuff#downloads",
    is_needed=lambda name: "2017/" in name,
    sizes={"train": 118287, "val": 5000},
)
DATASET_10K = Dataset(
    name="coco_stuff10k",
    read_raw=read_raw_10k,
    label_map=LABEL_MAP_10K,
    archive_names=("cocostuff-10k-v1.1.zip",),
    publisher="https://github.com/nightrome/cocostuff10k (cocostuff-10k-v1.1.zip)",
    is_needed=lambda name: pathlib.PurePosixPath(name).parent.name in ("images", "annotations", "imageLists"),
    sizes={"train": 9000, "test": 1000},
)
