"""`labels.toml`: the classes of a folder, and the ids and colors that its masks have for them.

    reduce_zero_label = true           # 0 is unlabeled, and the first class is id 1
    ignore_ids = [254]
    ignore_colors = [[0, 0, 0]]

    [[classes]]                        # or classes = ["road", "car"], or classes.txt
    name = "road"
    ids = [7, 9]                       # or id = 7; leave it out if the classes are numbered in order
    colors = [[128, 64, 128]]          # or color = "#804080"

255 and the color of the ignore label are always ignored, unless they belong to a class.
"""

import dataclasses
import pathlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from deeplab_jax.data.formats.class_list import ClassList
from deeplab_jax.data.label_map import Color, LabelMap
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.labels import IGNORE_LABEL, LabelSet

FILE = "labels.toml"

_LARGEST_FILE = 1 << 20
_KEYS = ("classes", "ignore_ids", "ignore_colors", "reduce_zero_label")
_CLASS_KEYS = ("name", "id", "ids", "color", "colors")


def read_label_file(path: pathlib.Path, classes: ClassList | None = None) -> ClassList:
    """Reads a `labels.toml`.

    Args:
      path: the file.
      classes: the content of classes.txt; None if there is no such file.

    Raises:
      UserError: the file is damaged, or a value is wrong; classes are in both files or in none.
    """
    try:
        return _read(_load(path), classes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read(values: dict[str, Any], classes: ClassList | None) -> ClassList:
    _check_keys(values, _KEYS, "")
    if "classes" in values and classes is not None:
        raise UserError("classes.txt lists classes too; list them in one of the files")
    if "classes" not in values and classes is None:
        raise UserError("it has no `classes`; list them here, or in classes.txt next to it")
    owners = {}
    if classes is None:
        classes, owners = _read_classes(values["classes"])
    reduce_zero_label = values.get("reduce_zero_label", False)
    if not isinstance(reduce_zero_label, bool):
        raise UserError(f"reduce_zero_label is {reduce_zero_label!r:.40}; it must be true or false")
    ignore_colors = _colors("ignore_colors", values.get("ignore_colors", []))
    for color in ignore_colors:
        if color in owners:
            raise UserError(
                f"color {color} is ignored, but it is a color of {classes.label_set.class_names[owners[color]]}"
            )
    changed = change_ids(
        classes,
        reduce_zero_label=reduce_zero_label,
        ignore_ids=_ids("ignore_ids", values.get("ignore_ids", [])),
    )
    colors = dict(changed.label_map.colors) | owners | dict.fromkeys(ignore_colors, IGNORE_LABEL)
    return dataclasses.replace(changed, label_map=dataclasses.replace(changed.label_map, colors=colors))


def change_ids(classes: ClassList, *, reduce_zero_label: bool = False, ignore_ids: Iterable[int] = ()) -> ClassList:
    """The class list with other ids in the masks.

    Args:
      classes: the class list.
      reduce_zero_label: 0 is ignored, and the ids of the classes begin at 1.
      ignore_ids: further ids that are ignored.

    Raises:
      UserError: the list states ids of its own, so they do not begin at 1.
    """
    ignore_ids = tuple(ignore_ids)
    if not reduce_zero_label and not ignore_ids:
        return classes
    label_map = classes.label_map
    ids = dict(label_map.ids)
    if reduce_zero_label:
        if classes.has_ids:
            raise UserError(
                "the classes have ids, but reduce_zero_label numbers them from 1; leave it out, and ignore id 0 instead"
            )
        ids = {0: IGNORE_LABEL} | {index + 1: index for index in range(label_map.num_classes)}
    ids |= dict.fromkeys(ignore_ids, IGNORE_LABEL)
    return dataclasses.replace(classes, label_map=LabelMap(label_map.num_classes, ids, label_map.colors), has_ids=True)


def _load(path: pathlib.Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"it cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST_FILE:
        raise UserError(f"it is larger than {_LARGEST_FILE >> 20} MiB, so it is not a list of classes")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is not valid UTF-8; save the file as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"it is not valid TOML: {' '.join(str(error).split())}") from None


def _read_classes(entries: Any) -> tuple[ClassList, dict[Color, int]]:
    """The class list, and the class of each color, of which a class can have several."""
    if not isinstance(entries, list) or not entries:
        raise UserError("classes must be a list of names, or [[classes]] tables with a name each")
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    names, ids, colors = [], [], []
    for position, entry in enumerate(entries):
        where = f"class {position}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is {entry!r:.40}; write its name, or a table with a name")
        _check_keys(entry, _CLASS_KEYS, f" of {where}")
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where} has no name")
        if name in names:
            raise UserError(f"two classes are named {name}; give one class several ids with ids = [...]")
        names.append(name)
        ids.append(_ids(f"ids of {name}", _one_or_several(entry, "id", "ids", name)))
        colors.append(_colors(f"colors of {name}", _one_or_several(entry, "color", "colors", name)))
    if len(names) > IGNORE_LABEL:
        raise UserError(f"it has {len(names)} classes; at most {IGNORE_LABEL} are possible")
    for found, kind in ((ids, "id"), (colors, "color")):
        missing = [name for name, values in zip(names, found, strict=True) if not values]
        if missing and len(missing) < len(names):
            raise UserError(f"{missing[0]} has no {kind}, but other classes do; give it one too")
    owners = {}
    for index, values in enumerate(colors):
        for color in values:
            if owners.setdefault(color, index) != index:
                raise UserError(f"{names[owners[color]]} and {names[index]} have the same color {color}")
    has_ids, has_colors = any(ids), any(colors)
    palette = tuple(values[0] for values in colors) if has_colors else None
    label_set = LabelSet(tuple(names), palette) if has_colors else LabelSet.from_names(tuple(names))
    label_map = LabelMap.create(label_set, ids=ids if has_ids else None)
    return ClassList(label_set, label_map, has_colors, has_ids), owners


def _one_or_several(entry: Mapping[str, Any], one: str, several: str, name: str) -> list[Any]:
    if one in entry and several in entry:
        raise UserError(f"{name} has both {one} and {several}; write one of them")
    if one in entry:
        return [entry[one]]
    return entry.get(several, [])


def _ids(name: str, values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise UserError(f"{name} must be whole numbers, for example [0, 7]")
    return values


def _colors(name: str, values: Any) -> list[Color]:
    problem = f'{name} must be colors, for example [[128, 64, 128]] or ["#804080"]'
    if not isinstance(values, list):
        raise UserError(problem)
    colors = []
    for value in values:
        if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
            value = [*bytes.fromhex(value[1:])]
        if not isinstance(value, list) or len(value) != 3 or not all(part in range(256) for part in value):
            raise UserError(problem)
        colors.append(tuple(value))
    return colors


def _check_keys(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {key!r}{where}{suggest(key, known)}")
