"""Your own data: a folder with `images/`, `masks/` and `classes.txt`.

The mask of `images/a.jpg` is `masks/a.png`, of the same size. `classes.txt` has one class name per line; the first is
id 0. With colors (`name r g b`), masks may be RGB images in these colors. Lists such as `train.txt` and `val.txt`, with
one image name per line, define the splits. Without lists, about a fifth of the images go to `val`, chosen by a hash of
their names, so adding images moves hardly any other.
"""

import functools
import hashlib
import pathlib

import numpy as np

from deeplab_jax.data import images
from deeplab_jax.data.dataset import Dataset, RawDataset, RawExample
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL, LabelSet

_CLASSES = "classes.txt"


def read_raw(root: pathlib.Path, *, val_fraction: float = 0.2) -> RawDataset:
    """The splits of a folder of images and masks.

    Args:
      root: the folder.
      val_fraction: fraction of the images that go to `val` if there are no lists.

    Raises:
      UserError: a folder, the class list or a listed image is missing.
    """
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise UserError(f"{root} has no folder {name}/; put images in images/ and masks of the same name in masks/")
    label_set, by_color = read_classes(root / _CLASSES)
    files = _find_images(root / "images")
    splits = _read_lists(root) or _split_by_hash(root / "images", list(files), val_fraction)
    examples = {}
    for split, names in splits.items():
        for name in names:
            if name not in files:
                raise UserError(f"{root / split}.txt lists {name}, but there is no such image in {root / 'images'}")
        examples[split] = [_example(root, files[name], label_set, by_color) for name in names]
    return RawDataset(label_set=label_set, splits=examples)


def read_classes(path: pathlib.Path) -> tuple[LabelSet, bool]:
    """Reads a class list.

    Returns:
      The label set, and whether the list defines its colors.

    Raises:
      UserError: the file is missing, or a line is wrong.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; write one class name per line, the first is id 0 (usually background)")
    names, colors = [], []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) >= 4 and all(word.isdigit() and int(word) < 256 for word in words[-3:]):
            names.append(" ".join(words[:-3]))
            colors.append(tuple(int(word) for word in words[-3:]))
        else:
            names.append(" ".join(words))
        if colors and len(colors) != len(names):
            raise UserError(f"{path}, line {number}: give a color (`name r g b`) to every class or to none")
    if not names:
        raise UserError(f"{path} contains no class names")
    if len(names) > IGNORE_LABEL:
        raise UserError(f"{path} has {len(names)} classes; at most {IGNORE_LABEL} are possible")
    for values, kind in ((names, "name"), (colors, "color")):
        if len(set(values)) < len(values):
            raise UserError(f"{path}: two classes have the same {kind}")
    if colors:
        return LabelSet(tuple(names), tuple(colors)), True
    return LabelSet.from_names(tuple(names)), False


def _find_images(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The images of a folder by name, sorted."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in images.IMAGE_SUFFIXES)
    files = {path.stem: path for path in found}
    if len(files) < len(found):
        name = next(path.stem for path in found if files[path.stem] != path)
        raise UserError(f"{folder} has two images named {name}; names must differ in more than their suffix")
    if not files:
        raise UserError(f"{folder} contains no images ({', '.join(images.IMAGE_SUFFIXES)})")
    return files


def _read_lists(root: pathlib.Path) -> dict[str, list[str]]:
    """The image names of each split that has a list."""
    lists = sorted(path for path in root.glob("*.txt") if path.name != _CLASSES)
    return {path.stem: [pathlib.PurePath(name).stem for name in path.read_text().split()] for path in lists}


def _split_by_hash(folder: pathlib.Path, names: list[str], val_fraction: float) -> dict[str, list[str]]:
    if len(names) == 1:
        raise UserError(f"{folder} contains one image; train and val need at least one each")
    splits = {"train": [], "val": []}
    threshold = val_fraction * 2**32
    ranked = sorted(names, key=_hash)
    for name in sorted(names):
        # At least one image in each split, however small the folder is.
        in_val = name == ranked[0] or (_hash(name) < threshold and name != ranked[-1])
        splits["val" if in_val else "train"].append(name)
    return splits


def _example(root: pathlib.Path, image: pathlib.Path, label_set: LabelSet, by_color: bool) -> RawExample:
    candidates = [root / "masks" / f"{image.stem}{suffix}" for suffix in images.IMAGE_SUFFIXES]
    mask = next((path for path in candidates if path.is_file()), None)
    return RawExample(
        id=image.stem,
        image=image,
        read_label=functools.partial(_read_mask, mask, image, label_set, by_color),
    )


def _read_mask(mask: pathlib.Path | None, image: pathlib.Path, label_set: LabelSet, by_color: bool) -> np.ndarray:
    if mask is None:
        raise UserError(f"image {image} has no mask; put {image.stem}.png in {image.parent.parent / 'masks'}")
    if mask.suffix.lower() in (".jpg", ".jpeg"):
        raise UserError(f"mask {mask} is a JPEG, whose compression changes labels; save masks as PNG")
    label = images.read_mask(mask, label_set, by_color=by_color)
    if not by_color and set(np.unique(label)) == {0, IGNORE_LABEL} and label_set.num_classes == 2:
        raise UserError(
            f"mask {mask} contains only 0 and 255, but 255 marks ignored pixels: save the foreground as 1, or add "
            f"colors to classes.txt (`{label_set.class_names[0]} 0 0 0`, `{label_set.class_names[1]} 255 255 255`)"
        )
    return label


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


DATASET = Dataset(name="folder", read_raw=read_raw, options=("val_fraction",))
