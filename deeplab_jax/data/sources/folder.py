"""Your own data: a folder with `images/`, `masks/` and `classes.txt`.

The mask of `images/a.jpg` is `masks/a.png`, of the same size. `classes.txt` has one class name per line; the first is
id 0. With colors (`name r g b`), masks may be RGB images in these colors. `labels.toml` maps other ids and colors to
classes. Lists such as `train.txt` and `val.txt`, with one image name per line, define the splits, and so do subfolders
`images/train` and `images/val`. Without either, about a fifth of the images go to `val`, chosen by a hash of their
names, so adding images moves hardly any other. The images in `unlabeled/` become the split of this name, which needs no
masks.
"""

import functools
import hashlib
import pathlib
import re
import shlex
from collections.abc import Iterable

import numpy as np

from deeplab_jax.data.annotation_formats import recognize_format
from deeplab_jax.data.annotation_import import read_label
from deeplab_jax.data.dataset import UNLABELED, Dataset, RawDataset, RawExample
from deeplab_jax.data.formats.annotations import Export
from deeplab_jax.data.formats.class_list import ClassList, read_classes
from deeplab_jax.data.formats.file_names import Index, match_masks, name_of
from deeplab_jax.data.formats.label_file import FILE as LABEL_FILE
from deeplab_jax.data.formats.label_file import change_ids, read_label_file
from deeplab_jax.data.formats.split_list import Entry, read_list
from deeplab_jax.data.image_files import IMAGE_SUFFIXES, describe_left_out, is_clutter, list_images
from deeplab_jax.data.mask_reading import MaskReading, decide
from deeplab_jax.data.mask_survey import Survey
from deeplab_jax.errors import UserError

_CLASSES = "classes.txt"
_NAMED = 3  # files that a note names

# Subfolders that are splits, such as train, Validation and val2017; the group is the name of the split.
_SPLIT_FOLDER = re.compile(r"(train|val|test|unlabeled)(?:ing|id|idation)?[\d_\-]*", re.IGNORECASE)


def read_raw(
    root: pathlib.Path,
    *,
    val_fraction: float = 0.2,
    reduce_zero_label: bool = False,
    ignore_ids: Iterable[int] = (),
) -> RawDataset:
    """The splits of a folder of images and masks. Reads all masks, to decide how to read them.

    Args:
      root: the folder.
      val_fraction: fraction of the images that go to `val` if there are neither lists nor folders of splits.
      reduce_zero_label: id 0 of masks is unlabeled, and the first class is id 1.
      ignore_ids: ids of masks that are unlabeled.

    Raises:
      UserError: a folder, the class list or a listed image is missing, or the masks do not fit the class list.
    """
    root = _skip_outer_folders(root)
    if exported := _read_export(root, val_fraction):
        if reduce_zero_label or ignore_ids:
            raise UserError(
                f"{root} is an export with its own classes, so --reduce-zero-label and --ignore-ids do not apply"
            )
        return exported
    image_folders, mask_folders = _find_folders(root)
    classes = change_ids(_read_classes(root), reduce_zero_label=reduce_zero_label, ignore_ids=ignore_ids)
    images, left_out = _find_files(image_folders)
    masks, _ = _find_files(mask_folders)
    if not images:
        found = f"; it contains {describe_left_out(left_out)}" if left_out else ""
        raise UserError(f"{root / 'images'} contains no images ({', '.join(IMAGE_SUFFIXES)}){found}")
    notes = [f"left out of images/: {describe_left_out(left_out)}"] if left_out else []
    mask_names = match_masks(images, masks)
    notes += _describe_match(mask_names)
    lists, other_files = _read_lists(root, Index(images, "images"), Index(masks, "masks"))
    notes += [f"{path.name} is not read as a list of a split: its lines do not name images" for path in other_files]
    if not lists:
        unlabeled = _folders_without_masks(images, mask_names)
        images = {name: path for name, path in images.items() if _folder_of(name) not in unlabeled}
        notes += [f"images/{folder}/ is left out: no image in it has a mask" for folder in sorted(unlabeled)]
    splits = lists or _split_by_folder(root, images) or _split_by_hash(root, images, val_fraction)
    # The mask of a line of a list, or of the same name. Lists can give an image different masks.
    splits = {
        split: [Entry(entry.image, entry.mask or mask_names.get(entry.image)) for entry in listed]
        for split, listed in splits.items()
    }
    entries = [entry for split in splits.values() for entry in split]
    used = {entry.mask: masks[entry.mask] for entry in entries if entry.mask}
    notes += _describe_unused(images, masks, entries, {*used, *mask_names.values()})
    reading = decide(Survey(used.values()), classes)
    examples = {
        split: [_example(entry, images, masks, mask_names, reading, needs_mask=split != UNLABELED) for entry in listed]
        for split, listed in splits.items()
    }
    if unlabeled := _read_unlabeled(root):
        if UNLABELED in examples:
            raise UserError(f"{root} has a folder {UNLABELED}/ and lists or images of a split {UNLABELED}; remove one")
        examples[UNLABELED] = unlabeled
    return RawDataset(classes.label_set, examples, (*notes, *reading.notes), classes.label_map, repr(reading.rules()))


def _read_classes(root: pathlib.Path) -> ClassList:
    """The content of labels.toml and classes.txt, of which one is enough."""
    if not (root / LABEL_FILE).is_file():
        return read_classes(root / _CLASSES)
    return read_label_file(root / LABEL_FILE, read_classes(root / _CLASSES) if (root / _CLASSES).is_file() else None)


def _read_export(root: pathlib.Path, val_fraction: float) -> RawDataset | None:
    """Reads the masks that an annotation tool exported; None if the folder is not an export.

    Raises:
      UserError: it is an export of shapes, which have to be drawn first.
    """
    is_folder = any((root / name).exists() for name in (_CLASSES, LABEL_FILE, "masks"))
    if is_folder or (tool := recognize_format(root)) is None:
        return None
    if not tool.recognize_masks(root):
        raise UserError(
            f"{root} is an export of {tool.tool}; first run `deeplab-jax data import --from {tool.name} "
            f"{shlex.quote(str(root))} --output FOLDER`, then prepare FOLDER"
        )
    annotations = tool.read(Export(root))
    examples = {
        name: RawExample(name, item.image, functools.partial(read_label, item), label_files=item.label_files)
        for name, item in ((item.name.rpartition(".")[0], item) for item in annotations.images)
    }
    splits = _split_by_folder(root, examples) or _split_by_hash(root, examples, val_fraction)
    return RawDataset(
        label_set=annotations.classes.label_set,
        splits={split: [examples[entry.image] for entry in listed] for split, listed in splits.items()},
        notes=(f"{root} is read as an export of {tool.tool}", *annotations.notes),
    )


def _skip_outer_folders(root: pathlib.Path) -> pathlib.Path:
    """The folder itself, or the one inside that contains the data, as in many archives."""
    inner = root
    while not any((inner / name).exists() for name in ("images", "masks", _CLASSES, LABEL_FILE)):
        folders = [path for path in inner.glob("*/") if not is_clutter(path.name)]
        if len(folders) != 1:
            return root
        inner = folders[0]
    return inner


# Folders, by what is in front of the names of their files.
_Folders = dict[str, pathlib.Path]


def _find_folders(root: pathlib.Path) -> tuple[_Folders, _Folders]:
    """The folders of images and of masks: `images/` and `masks/`, or the two in each of several folders."""
    if not (root / "images").is_dir():
        parts = sorted(path.parent for path in root.glob("*/images") if (path.parent / "masks").is_dir())
        if parts:
            return tuple({f"{part.name}/": part / kind for part in parts} for kind in ("images", "masks"))
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise UserError(f"{root} has no folder {name}/; put images in images/ and masks of the same name in masks/")
    return {"": root / "images"}, {"": root / "masks"}


def _find_files(folders: _Folders) -> tuple[dict[str, pathlib.Path], list[pathlib.Path]]:
    """The images of folders and their subfolders by name, sorted; and the files that are not images."""
    files, left_out = {}, []
    for prefix, folder in folders.items():
        found, others = list_images(folder, recursive=True)
        left_out += others
        for path in found:
            name = prefix + name_of(path, folder)
            other = files.setdefault(name, path)
            if other != path:
                raise UserError(
                    f"{path.parent} has two images named {path.stem} ({other.name}, {path.name}); names must differ in "
                    "more than their suffix"
                )
    return dict(sorted(files.items())), left_out


def _describe_match(mask_names: dict[str, str]) -> list[str]:
    image, mask = next(iter(mask_names.items()), ("", ""))
    return [] if image == mask else [f"images and masks are matched by parts of their names: {image} and {mask}"]


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _folders_without_masks(images: Iterable[str], mask_names: dict[str, str]) -> set[str]:
    """The subfolders, such as `originals`, whose images all lack a mask, unless they are splits or it is all images."""
    with_masks = {_folder_of(name) for name in mask_names}
    others = {_folder_of(name) for name in images} - with_masks - {""} if with_masks else set()
    return {folder for folder in others if not _SPLIT_FOLDER.fullmatch(folder.partition("/")[0])}


def _describe_unused(
    images: dict[str, pathlib.Path],
    masks: dict[str, pathlib.Path],
    entries: Iterable[Entry],
    used: set[str],
) -> list[str]:
    """Images that are in no split, and masks that belong to no image; `used` are the names of those that do."""
    listed = {entry.image for entry in entries}
    notes = []
    for kind, unused in (
        ("masks without an image", [path for name, path in masks.items() if name not in used]),
        ("images in no list", [path for name, path in images.items() if name not in listed]),
    ):
        if unused:
            more = ", ..." if len(unused) > _NAMED else ""
            notes.append(f"{len(unused)} {kind}: {', '.join(path.name for path in unused[:_NAMED])}{more}")
    return notes


def _read_lists(root: pathlib.Path, images: Index, masks: Index) -> tuple[dict[str, list[Entry]], list[pathlib.Path]]:
    """The lines of each split that has a list, and the text files that are not lists."""
    paths = sorted(path for path in root.glob("*.txt") if path.name != _CLASSES and not is_clutter(path.name))
    found = {path: read_list(path, images, masks) for path in paths}
    lists = {path.stem: entries for path, entries in found.items() if entries is not None}
    return lists, [path for path, entries in found.items() if entries is None]


def _split_by_folder(root: pathlib.Path, images: Iterable[str]) -> dict[str, list[Entry]]:
    """Splits that are subfolders; empty if there are none."""
    splits, others = {}, []
    for name in images:
        match = _SPLIT_FOLDER.fullmatch(name.partition("/")[0]) if "/" in name else None
        if match:
            splits.setdefault(match[1].lower(), []).append(Entry(name, None))
        else:
            others.append(name)
    if splits and others:
        raise UserError(
            f"{root} has images in folders of splits ({', '.join(splits)}), but others outside of them, such as "
            f"{others[0]}; move them into one, or write lists such as train.txt"
        )
    return splits


def _split_by_hash(root: pathlib.Path, images: Iterable[str], val_fraction: float) -> dict[str, list[Entry]]:
    names = sorted(images)
    if len(names) == 1:
        raise UserError(f"{root / 'images'} contains one image; train and val need at least one each")
    splits = {"train": [], "val": []}
    threshold = val_fraction * 2**32
    ranked = sorted(names, key=_hash)
    for name in names:
        # At least one image in each split, however small the folder is.
        in_val = name == ranked[0] or (_hash(name) < threshold and name != ranked[-1])
        splits["val" if in_val else "train"].append(Entry(name, None))
    return splits


def _example(
    entry: Entry,
    images: dict[str, pathlib.Path],
    masks: dict[str, pathlib.Path],
    mask_names: dict[str, str],
    reading: MaskReading,
    *,
    needs_mask: bool,
) -> RawExample:
    image = images[entry.image]
    if entry.mask is None and not needs_mask:
        return RawExample(entry.image, image, read_label=None)
    if entry.mask is not None:
        mask = masks[entry.mask]
        return RawExample(entry.image, image, functools.partial(reading.read, mask), label_files=(mask,))
    other, other_mask = next(iter(mask_names.items()), ("", ""))
    expected = other_mask.replace(other, entry.image) if other and other in other_mask else entry.image
    return RawExample(id=entry.image, image=image, read_label=functools.partial(_raise_no_mask, image, expected))


def _read_unlabeled(root: pathlib.Path) -> list[RawExample]:
    """The images of the folder `unlabeled`; none without it."""
    if not (root / UNLABELED).is_dir():
        return []
    found, _ = _find_files({f"{UNLABELED}/": root / UNLABELED})
    if not found:
        raise UserError(f"{root / UNLABELED} contains no images ({', '.join(IMAGE_SUFFIXES)}); remove it")
    return [RawExample(name, image, read_label=None) for name, image in found.items()]


def _raise_no_mask(image: pathlib.Path, expected: str) -> np.ndarray:
    raise UserError(f"image {image} has no mask; put {expected}.png in masks/, or remove the image")


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


DATASET = Dataset(name="folder", read_raw=read_raw, options=("val_fraction", "reduce_zero_label", "ignore_ids"))
