"""Class lists: `classes.txt`, and what annotation tools write for the same purpose.

Each line is a name, or a name and a color: `name r g b`, `name,r,g,b`, `name #rrggbb`, `r g b name` (CamVid), or
`name:r,g,b:parts:actions` (CVAT's labelmap.txt). A list can number its lines. Lines that begin with `#` are comments.
`__ignore__`, from labelme's labels.txt, is the ignore label and takes no id.

With a colon after the number of every line, the numbers are the ids in masks, in any order and with gaps: `7: road`.
Then several lines may be `__ignore__`: `0: __ignore__`.
"""

import dataclasses
import pathlib
import re

from deeplab_jax.data.formats.text_file import read_lines
from deeplab_jax.data.label_map import LARGEST_ID, LabelMap
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL, LabelSet

Color = tuple[int, int, int]

IGNORE_NAME = "__ignore__"

_LONGEST_LINE = 500  # characters

_COLOR = r"(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})"
_WITH_COLOR = (
    re.compile(rf"(?P<name>.+?):{_COLOR}:.*"),  # CVAT
    re.compile(rf"(?P<name>.+?)[\s,;:]+{_COLOR}"),
    re.compile(rf"{_COLOR}[\s,;]+(?P<name>.*[^\s\d].*)"),  # CamVid
)
_HEX = re.compile(r"(?P<name>.+?)[\s,;:]+#(?P<hex>[0-9a-fA-F]{6})")
_NUMBERED = re.compile(r"(?P<id>\d+)\s*[\s:,;.]\s*(?P<name>.*\S)")
_SOURCE_ID = re.compile(r"(?P<id>\d{1,9})\s*:\s*(?P<rest>.*[^\s\d,:].*)")


@dataclasses.dataclass(frozen=True)
class ClassList:
    """The content of a class list.

    Attributes:
      label_set: names and colors; `LabelSet.from_names` chooses the colors if the list has none.
      label_map: the class of each id and color in the masks.
      has_colors: whether the list has colors.
      has_ids: whether the list says which ids the masks contain; else the position of a class is its id.
      has_ignore: whether the list has a line `__ignore__`, which says that 255 marks ignored pixels.
    """

    label_set: LabelSet
    label_map: LabelMap
    has_colors: bool
    has_ids: bool = False
    has_ignore: bool = False


def read_classes(path: pathlib.Path) -> ClassList:
    """Reads a class list.

    Raises:
      UserError: the file is missing, or a line is wrong.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; write one class name per line, the first is id 0 (usually background)")
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(path), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    for number, line in lines:
        if len(line) > _LONGEST_LINE:
            raise UserError(f"{path}, line {number} has {len(line)} characters; write one class name per line")
    numbered = [_SOURCE_ID.fullmatch(line) for _, line in lines]
    ids = _source_ids(path, lines, numbered) if lines and all(numbered) else []
    has_ids = ids != list(range(len(ids))) or any(match["rest"].startswith(IGNORE_NAME) for match in numbered if ids)
    if has_ids:
        lines = [(number, match["rest"]) for (number, _), match in zip(lines, numbered, strict=True)]
    entries = [(number, *_parse(path, number, line)) for number, line in lines]
    ignored = [position for position, (_, name, _) in enumerate(entries) if name == IGNORE_NAME]
    if ignored and not has_ids and ignored[0] not in (0, len(entries) - 1):
        raise UserError(
            f"{path}, line {entries[ignored[0]][0]}: {IGNORE_NAME} takes no id, so the ids after it are unclear; make "
            "it the first line"
        )
    classes = [entry for position, entry in enumerate(entries) if position not in ignored]
    for number, _, color in classes:
        if (color is None) != (classes[0][2] is None):
            raise UserError(f"{path}, line {number}: give a color (`name r g b`) to every class or to none")
    names = _without_numbers(path, [(number, name) for number, name, _ in classes])
    colors = [color for _, _, color in classes if color is not None]
    ignore_colors = [entries[position][2] for position in ignored if entries[position][2] is not None]
    _check(path, names, colors, ignore_colors)
    label_set = LabelSet(tuple(names), tuple(colors)) if colors else LabelSet.from_names(tuple(names))
    label_map = LabelMap.create(
        label_set,
        ids=[ids[position] for position in range(len(entries)) if position not in ignored] if has_ids else None,
        ignore_ids=[ids[position] for position in ignored] if has_ids else (),
        ignore_colors=ignore_colors,
    )
    return ClassList(label_set, label_map, bool(colors), has_ids, bool(ignored))


def _source_ids(path: pathlib.Path, lines: list[tuple[int, str]], numbered: list[re.Match]) -> list[int]:
    """The ids in front of the colons of all lines."""
    ids = [int(match["id"]) for match in numbered]
    for position, ((number, _), found) in enumerate(zip(lines, ids, strict=True)):
        if found > LARGEST_ID:
            raise UserError(f"{path}, line {number}: id {found} is too large; ids are 0 to {LARGEST_ID}")
        if found in ids[:position]:
            raise UserError(f"{path}, line {number}: id {found} is also on line {lines[ids.index(found)][0]}")
    return ids


def _parse(path: pathlib.Path, number: int, line: str) -> tuple[str, Color | None]:
    """The name and the color of a line."""
    if match := _HEX.fullmatch(line):
        return " ".join(match["name"].split()), tuple(bytes.fromhex(match["hex"]))
    for pattern in _WITH_COLOR:
        if match := pattern.fullmatch(line):
            name = " ".join(match["name"].split())
            color = tuple(int(match[channel]) for channel in "rgb")
            if max(color) > 255:
                raise UserError(f"{path}, line {number}: color {color} of {name} is invalid; values are 0 to 255")
            return name, color
    return " ".join(line.split()), None


def _without_numbers(path: pathlib.Path, entries: list[tuple[int, str]]) -> list[str]:
    """The names, without the ids in front of them if every line has one."""
    names = [name for _, name in entries]
    matches = [_NUMBERED.fullmatch(name) for name in names]
    if not matches or not all(matches):
        return names
    ids = [int(match["id"]) for match in matches]
    if sorted(ids) != list(range(len(ids))):
        return names  # "1 euro", "2 euro"
    for (number, name), found, expected in zip(entries, ids, range(len(ids)), strict=True):
        if found != expected:
            raise UserError(f"{path}, line {number}: `{name}` is on the line of id {expected}; sort the lines by id")
    return [match["name"] for match in matches]


def _check(path: pathlib.Path, names: list[str], colors: list[Color], ignore_colors: list[Color]) -> None:
    if not names:
        raise UserError(f"{path} contains no class names")
    if len(names) > IGNORE_LABEL:
        raise UserError(f"{path} has {len(names)} classes; at most {IGNORE_LABEL} are possible")
    for values, kind in ((names, "name"), (colors, "color")):
        if len(set(values)) < len(values):
            raise UserError(f"{path}: two classes have the same {kind}")
    for color in ignore_colors:
        if color in colors:
            raise UserError(f"{path}: {IGNORE_NAME} has the color of class {names[colors.index(color)]}")
