"""A person's own data: a folder with `images/`, `masks/` and `classes.txt`.

An image `images/a.jpg` has the mask `masks/a.png` of the same size. `classes.txt` names one class a line, ids
counting from 0; with colors (`name r g b`) masks may be RGB images in these colors. Lists such as `train.txt` and
`val.txt`, one name a line, say which image belongs to which split; without lists, every fifth image or so goes to
`val`, chosen by a hash of its name, so that adding images moves hardly any other.
"""

import functools
import hashlib
import pathlib

import numpy as np

from deeplab_jax.data import images
from deeplab_jax.data.builder import Layout, Record, SegmentationBuilder
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL, LabelSet

_CLASSES = "classes.txt"


class Folder(SegmentationBuilder):
    """TFDS builder of a folder of images and masks."""


def read_layout(root: pathlib.Path, *, val_fraction: float = 0.2) -> Layout:
    """The splits of the folder.

    Args:
      root: the folder.
      val_fraction: share of the images that goes to `val` where there are no lists.

    Raises:
      UserError: a folder, the class list, a mask or a listed image is missing.
    """
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise UserError(f"{root} has no folder {name}/; images belong in images/, masks of the same name in masks/")
    labels, by_color = read_classes(root / _CLASSES)
    found = sorted(path for path in (root / "images").iterdir() if path.suffix.lower() in images.IMAGE_SUFFIXES)
    files = {path.stem: path for path in found}
    if len(files) < len(found):
        twice = next(path.stem for path in found if files[path.stem] != path)
        raise UserError(f"{root / 'images'} has two images named {twice}; names must differ without their endings")
    if not files:
        raise UserError(f"{root / 'images'} holds no images ({', '.join(images.IMAGE_SUFFIXES)})")
    lists = sorted(path for path in root.glob("*.txt") if path.name != _CLASSES)
    if lists:
        splits = {path.stem: [pathlib.PurePath(name).stem for name in path.read_text().split()] for path in lists}
    elif len(files) == 1:
        raise UserError(f"{root / 'images'} holds one image; train and val need at least one each")
    else:
        splits = {"train": [], "val": []}
        threshold = val_fraction * 2**32
        ranked = sorted(files, key=_hash)
        for name in sorted(files):
            # At least one image on each side, however small the folder is.
            in_val = name == ranked[0] or (_hash(name) < threshold and name != ranked[-1])
            splits["val" if in_val else "train"].append(name)
    records = {}
    for split, names in splits.items():
        for name in names:
            if name not in files:
                raise UserError(f"{root / split}.txt lists {name}, but there is no such image in {root / 'images'}")
        records[split] = [_record(root, files[name], labels, by_color) for name in names]
    return Layout(label_set=labels, splits=records)


def read_classes(path: pathlib.Path) -> tuple[LabelSet, bool]:
    """The label set of a class list, and whether it gives colors.

    Raises:
      UserError: there is no list, or a line is wrong.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; write one class name a line, the first is id 0 (usually background)")
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
            raise UserError(f"{path}, line {number}: either every class has a color (`name r g b`) or none")
    if not names:
        raise UserError(f"{path} names no class")
    if len(names) > IGNORE_LABEL:
        raise UserError(f"{path} names {len(names)} classes; at most {IGNORE_LABEL} fit below the void label")
    for values, what in ((names, "name"), (colors, "color")):
        if len(set(values)) < len(values):
            raise UserError(f"{path}: two classes have the same {what}")
    if colors:
        return LabelSet(tuple(names), tuple(colors)), True
    return LabelSet.from_names(tuple(names)), False


def _record(root: pathlib.Path, image: pathlib.Path, label_set: LabelSet, by_color: bool) -> Record:
    candidates = [root / "masks" / f"{image.stem}{suffix}" for suffix in images.IMAGE_SUFFIXES]
    mask = next((path for path in candidates if path.is_file()), None)
    return Record(
        id=image.stem,
        image=image,
        read_labels=functools.partial(_read_mask, mask, image, label_set, by_color),
    )


def _read_mask(mask: pathlib.Path | None, image: pathlib.Path, label_set: LabelSet, by_color: bool) -> np.ndarray:
    if mask is None:
        raise UserError(f"image {image} has no mask; put {image.stem}.png into {image.parent.parent / 'masks'}")
    if mask.suffix.lower() in (".jpg", ".jpeg"):
        raise UserError(f"mask {mask} is a JPEG, whose compression changes labels; save masks as PNG")
    ids = images.read_label_map(mask, label_set, by_color=by_color)
    if not by_color and set(np.unique(ids)) == {0, IGNORE_LABEL} and label_set.num_classes == 2:
        raise UserError(
            f"mask {mask} holds only 0 and 255, and 255 is void, not a class: save the foreground as 1, or give "
            f"colors in classes.txt (`{label_set.class_names[0]} 0 0 0`, `{label_set.class_names[1]} 255 255 255`)"
        )
    return ids


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
