"""How the masks of a whole data set are read: as class ids or by color. All masks are looked at before one is read.

- Gray values are colors if the class list has colors and every value of the data set is one of them; else they are ids.
  RGB masks that are gray everywhere are treated in the same way. A class list that states the ids decides this itself.
- Palette masks are read by color if all their colors are in the class list, and else by index.
- Transparent pixels were not painted. They have the first class if no other pixel has it, and are ignored otherwise.
  A transparent palette index, or gray value, keeps the class of its id or of its color.

Data that fits two readings with different results is rejected, and so are masks that use 255, the ignore label, where
they seem to mean a class.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.data import masks
from deeplab_jax.data.formats.class_list import IGNORE_NAME, ClassList
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.mask_survey import Survey, is_gray
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_COLOR, IGNORE_LABEL, LabelSet

Way = Literal["ids", "colors"]

_MOST_UNKNOWN = 20  # unknown colors that can be mistakes in classes.txt; more are blurred edges


@dataclasses.dataclass(frozen=True)
class MaskReading:
    """The rules by which every mask of a data set is read.

    Attributes:
      label_set: the classes.
      label_map: the class of each id and color.
      ways: how each kind of mask is read.
      hidden_label: the label of transparent pixels.
      notes: rules that a person should know of.
    """

    label_set: LabelSet
    label_map: LabelMap
    ways: dict[masks.Kind, Way]
    hidden_label: int
    notes: tuple[str, ...] = ()

    def rules(self) -> tuple[Any, ...]:
        """The rules as values, which are equal if masks are read in the same way."""
        return self.label_map.to_json(), self.ways, self.hidden_label

    def read(self, path: pathlib.Path) -> UInt8[np.ndarray, "height width"]:
        """Reads a mask as a label.

        Raises:
          UserError: see `masks.load_mask`; or the mask contains a color or an id that is not assigned to any class.
        """
        mask = masks.load_mask(path)
        by_ids = self.ways[mask.kind] == "ids"
        values = mask.values if by_ids else mask.codes()
        hidden = mask.hidden
        if hidden is not None and mask.hidden_by_value:  # only colors without a class are lost
            hidden = None if by_ids else hidden & ~np.isin(values, list(self.label_map.color_codes))
        if by_ids and mask.kind == "RGB":
            values = values & 255
        if hidden is not None:  # any valid value; it is replaced below
            values = np.where(hidden, next(iter(self.label_map.ids if by_ids else self.label_map.color_codes)), values)
        if not by_ids:
            label = masks.look_up_colors(values, self.label_map.color_codes, path)
        elif self.label_map.is_identity:
            masks.check_label(values, self.label_set, str(path))
            label = values.astype(np.uint8)
        else:
            label = self.label_map.apply(values, path)
        return label if hidden is None else np.where(hidden, np.uint8(self.hidden_label), label)


def decide(survey: Survey, classes: ClassList) -> MaskReading:
    """Decides how masks are read.

    Raises:
      UserError: the masks fit no reading, or two that differ.
    """
    color_ids = classes.label_map.color_codes
    notes = [_describe_ids(classes)] if classes.has_ids else []
    if survey.has_hidden and not survey.has_visible:
        raise UserError(
            "all masks are transparent everywhere; remove their alpha channel, or save class ids as gray PNGs"
        )
    ways: dict[masks.Kind, Way] = {"gray": _gray_way("gray", survey.values["gray"], survey, classes, color_ids, notes)}
    rgb = survey.values["RGB"]
    if rgb and all(map(is_gray, rgb)):
        ways["RGB"] = _gray_way(
            "RGB", {code & 255: path for code, path in rgb.items()}, survey, classes, color_ids, notes
        )
    else:
        _check_colors(rgb, color_ids)
        ways["RGB"] = "colors"
    ways["palette"] = _palette_way(survey, classes, color_ids, notes)
    hidden_label = 0
    if survey.has_hidden or (ways["palette"] == "colors" and not survey.hidden_colors <= set(color_ids)):
        hidden_label = IGNORE_LABEL if _uses_first_class(survey, ways, classes.label_map) else 0
        meaning = "ignored pixels" if hidden_label else f"{classes.label_set.class_names[0]}, the first class"
        notes.append(f"transparent pixels of masks are read as {meaning}")
    return MaskReading(classes.label_set, classes.label_map, ways, hidden_label, tuple(notes))


def _describe_ids(classes: ClassList) -> str:
    """Which ids are ignored, for a note."""
    ignored = [source for source, target in classes.label_map.ids.items() if target == IGNORE_LABEL]
    counts = f"{len(classes.label_map.ids) - len(ignored)} ids of masks are mapped to {classes.label_set.num_classes}"
    return f"{counts} classes, and ignored are: {', '.join(map(str, sorted(ignored)))}"


def _gray_way(
    kind: masks.Kind,
    values: dict[int, pathlib.Path],
    survey: Survey,
    classes: ClassList,
    color_ids: dict[int, int],
    notes: list[str],
) -> Way:
    """How gray values are read; `values` are those of the whole data set."""
    names, ids = classes.label_set.class_names, classes.label_map.ids
    of_color = {value: color_ids.get(value * 0x010101) for value in values}
    fits_colors = [classes.has_colors and index is not None for index in of_color.values()]
    fits_ids = [value in ids for value in values]
    if classes.has_ids:
        return "colors" if all(fits_colors) and not all(fits_ids) else "ids"
    drawn_as_255 = _is_drawn_as(values, len(names)) and not classes.has_ignore
    if all(fits_colors) and all(fits_ids) and not drawn_as_255:
        differing = next((value for value, index in of_color.items() if index != ids[value]), None)
        if differing is not None:
            raise UserError(
                f"gray value {differing} of the masks ({values[differing]}) is the id of one class and the color of "
                "another in classes.txt; change the colors, or remove them if the masks contain ids"
            )
    if all(fits_colors):
        return "colors"
    if drawn_as_255:
        raise UserError(_explain_255(kind, values, classes))
    if not classes.has_colors or fits_ids.count(True) >= fits_colors.count(True):
        if IGNORE_LABEL in values and survey.only_255 and not survey.with_255 and not classes.has_ignore:
            _check_mixture(values, survey.only_255, names, notes)
        _check_first_id(kind, values, names)
        return "ids"
    return "colors"


def _check_mixture(
    values: dict[int, pathlib.Path], only_255: list[pathlib.Path], names: tuple[str, ...], notes: list[str]
) -> None:
    """Rejects masks of 0 and 1 among masks of 0 and 255. With more classes, 255 is less likely to mean one."""
    confirm = f"add a first line {IGNORE_NAME} to classes.txt if 255 marks ignored pixels"
    if len(names) == 2 and 1 in values:
        raise UserError(
            f"some masks contain 1 ({values[1]}), others only 0 and 255 ({only_255[0]}): save {names[1]} as 1 "
            f"everywhere, or {confirm}"
        )
    notes.append(f"{len(only_255)} masks contain only 0 and 255 (such as {only_255[0].name}); {confirm}")


def _is_drawn_as(values: Iterable[int], num_classes: int) -> bool:
    """Whether masks contain nothing but 0 and one value that is not a class: the foreground of many tools."""
    others = set(values) - {0}
    return len(others) == 1 and min(others) >= num_classes and min(others) in (IGNORE_LABEL, 65535)


def _explain_255(kind: masks.Kind, values: dict[int, pathlib.Path], classes: ClassList) -> str:
    names = classes.label_set.class_names
    found = " and ".join(str(value) for value in sorted(values))
    problem = f"the {kind} masks contain only {found} (such as {_first(values)})"
    if 65535 in values:
        return f"{problem}; save the foreground as 1, in 8 bits"
    problem += ", but 255 marks ignored pixels"
    if len(names) == 1:
        return (
            f"{problem}, and id 0 is {names[0]}: make background the first line of classes.txt and give both colors "
            f"(`background 0 0 0`, `{names[0]} 255 255 255`), or save {names[0]} as 1"
        )
    fix = "save the foreground as 1"
    if len(names) == 2 and not classes.has_colors:
        fix += f", or add colors to classes.txt (`{names[0]} 0 0 0`, `{names[1]} 255 255 255`)"
    elif not classes.has_colors:
        fix = f"save each of the {len(names)} classes as its id, 0 to {len(names) - 1}"
    return f"{problem}: {fix}"


def _check_first_id(kind: masks.Kind, values: dict[int, pathlib.Path], names: tuple[str, ...]) -> None:
    """Rejects ids that begin at 1, and one id more than there are classes."""
    classes = set(values) - {IGNORE_LABEL}
    if classes and min(classes) in (0, 1) and max(classes) == len(names):
        raise UserError(
            f"the {kind} masks contain ids {min(classes)} to {len(names)} (such as {values[len(names)]}), but "
            f"classes.txt lists {len(names)} classes, of which the first is id 0; add the class of id 0 as the first "
            "line (often background), or pass --reduce-zero-label if 0 marks unlabeled pixels"
        )


def _check_colors(codes: dict[int, pathlib.Path], color_ids: dict[int, int]) -> None:
    """Rejects the colors of blurred edges, and channels in another order. Other unknown colors are named later."""
    unknown = [code for code in codes if code not in color_ids]
    if len(unknown) > _MOST_UNKNOWN:
        raise UserError(
            f"the masks contain {len(unknown)} colors that are not assigned to any class, such as "
            f"{masks.code_color(unknown[0])} in {codes[unknown[0]]}; save masks without antialiasing, resizing or "
            "lossy compression"
        )
    swapped = {code: masks.color_code(masks.code_color(code)[::-1]) for code in codes}
    if unknown and all(code in color_ids for code in swapped.values()):
        raise UserError(
            f"mask {codes[unknown[0]]} contains color {masks.code_color(unknown[0])}, which is a color of classes.txt "
            "with red and blue swapped; save the masks as RGB, not BGR"
        )


def _palette_way(survey: Survey, classes: ClassList, color_ids: dict[int, int], notes: list[str]) -> Way:
    """How palette masks are read."""
    used = [(index, code, path) for index, codes in survey.colors.items() for code, path in codes.items()]
    if used and all(code == index * 0x010101 for index, code, _ in used):  # a palette of grays
        return _gray_way("palette", survey.values["palette"], survey, classes, color_ids, notes)
    ids = classes.label_map.ids
    if not classes.has_colors:
        _check_one_palette(survey.colors)
        if classes.has_ids:
            return "ids"
        ignored = (IGNORE_LABEL, masks.color_code(IGNORE_COLOR)) in [(index, code) for index, code, _ in used]
        is_drawn = _is_drawn_as(survey.values["palette"], classes.label_set.num_classes)
        if is_drawn and not ignored and not classes.has_ignore:
            raise UserError(_explain_255("palette", survey.values["palette"], classes))
        _check_first_id("palette", survey.values["palette"], classes.label_set.class_names)
        return "ids"
    if used and all(code in color_ids for _, code, _ in used):
        return _ignored_index_way(used, classes.label_map, notes)
    for index, code, path in used:
        if color_ids.get(code, ids.get(index)) != ids.get(index):
            name = classes.label_set.class_names[color_ids[code]] if color_ids[code] != IGNORE_LABEL else IGNORE_NAME
            raise UserError(
                f"mask {path} is a palette image whose index {index} has the color of {name} in classes.txt, "
                f"{masks.code_color(code)}, but other colors of it are not listed; list the colors of all its indices "
                f"(`{IGNORE_NAME} r g b` for ignored pixels), or save class ids as gray PNGs"
            )
    if not all(is_gray(code) or code in color_ids or code == masks.NO_COLOR for _, code, _ in used):
        notes.append("palette masks are read by index, because their colors are not those of classes.txt")
    return "ids"


def _ignored_index_way(used: list[tuple[int, int, pathlib.Path]], label_map: LabelMap, notes: list[str]) -> Way:
    """How palette masks are read whose colors all are in the class list.

    They are colors, except where index 255 has the color of another index: many tools fill the end of a palette with
    black, and 255 still is the ignore label.
    """
    others = {code for index, code, _ in used if index != IGNORE_LABEL}
    filled = next((path for index, code, path in used if index == IGNORE_LABEL and code in others), None)
    if filled is None:
        return "colors"
    colors, ids = label_map.color_codes, label_map.ids
    if all(colors[code] == ids.get(index) for index, code, _ in used if index != IGNORE_LABEL):
        notes.append(f"index {IGNORE_LABEL} of palette masks is read as ignored pixels, whatever its color")
        return "ids"
    raise UserError(
        f"mask {filled} is a palette image whose index {IGNORE_LABEL} has the color of another index; give ignored "
        f"pixels a color of their own and list it in classes.txt (`{IGNORE_NAME} r g b`)"
    )


def _check_one_palette(colors: dict[int, dict[int, pathlib.Path]]) -> None:
    """Rejects palettes that have the same colors at different indices: then an index is not an id."""
    first = {}
    for index, codes in colors.items():
        for code, path in codes.items():
            other, other_path = first.setdefault(code, (index, path))
            differ = len(codes) > 1 or len(colors[other]) > 1  # else one palette has the color twice
            if other != index and other_path != path and differ and code != masks.NO_COLOR:
                raise UserError(
                    f"color {masks.code_color(code)} is index {other} in mask {other_path}, but {index} in {path}, so "
                    "their indices are not class ids; list the colors in classes.txt as `name r g b`"
                )


def _uses_first_class(survey: Survey, ways: dict[masks.Kind, Way], label_map: LabelMap) -> bool:
    """Whether a visible pixel has class 0."""
    codes = {code for code, index in label_map.color_codes.items() if index == 0}
    ids = {source for source, index in label_map.ids.items() if index == 0}
    for kind in ("gray", "RGB"):
        values = survey.values[kind]
        if kind == "gray" and ways[kind] == "colors":
            values = {value * 0x010101 for value in values}
        if kind == "RGB" and ways[kind] == "ids":
            values = {code & 255 for code in values}
        if (ids if ways[kind] == "ids" else codes) & set(values):
            return True
    if ways["palette"] == "ids":
        return bool(ids & set(survey.values["palette"]))
    return bool(codes & survey.hidden_colors) or any(codes & set(of) for of in survey.colors.values())


def _first(values: dict[int, pathlib.Path]) -> str:
    return str(values[max(values)])
