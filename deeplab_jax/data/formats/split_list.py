"""Split lists: `train.txt` and `val.txt`, one image per line, or an image and its mask."""

import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from deeplab_jax.data.formats.file_names import Index
from deeplab_jax.data.formats.text_file import read_lines
from deeplab_jax.errors import UserError

_SEPARATOR = re.compile(r"\s*[\t,;]\s*|\s+")

# Files of these names are lists whatever they contain, so that a wrong path in one is an error.
_SPLIT_NAME = re.compile(r"(?:train|val|valid|validation|test|trainval)[\d_\-]*", re.IGNORECASE)

_LONGEST_LINE = 4096  # characters; longer lines are prose
_SHOWN = 100  # characters of a line that a message shows
_NAMED = 3  # images that a message names


class Entry(NamedTuple):
    """A line of a list: the name of an image, and of its mask if the line has it."""

    image: str
    mask: str | None


def read_list(path: pathlib.Path, images: Index, masks: Index) -> list[Entry] | None:
    """Reads a split list.

    A line is the name or the path of an image, of any machine and with or without its suffix, or an image and its mask
    separated by white space or a comma. Lines that begin with `#` are comments.

    Returns:
      The lines; None if the file is not a list: it is not named like a split, and few of its lines name an image, or
      it cannot be read.

    Raises:
      UserError: a line names no image, or a mask that does not exist; or a file named like a split cannot be read.
    """
    is_named_like_split = _SPLIT_NAME.fullmatch(path.stem) is not None
    try:
        lines = read_lines(path)
    except UserError:
        if is_named_like_split:
            raise
        return None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    entries, unknown = [], []
    for number, line in numbered:
        entry = _parse(line, images, masks) if line else None
        if entry is not None:
            entries.append(entry)
        elif line and not line.startswith("#"):
            unknown.append((number, line))
    if len(entries) <= len(unknown) and not is_named_like_split:
        return None
    if unknown:
        number, line = unknown[0]
        raise UserError(f"{path}, line {number}: {_explain(line, images)}")
    return entries


def _parse(line: str, images: Index, masks: Index) -> Entry | None:
    if len(line) > _LONGEST_LINE:
        return None
    image = images.find_exact(line)
    if image is not None:
        return Entry(image, None)
    for find_image, find_mask in ((images.find_exact, masks.find_exact), (images.find, masks.find)):
        for left, right in _cuts(line):
            image, mask = find_image(left), find_mask(right)
            if image is not None and mask is not None:
                return Entry(image, mask)
    names_image = any(images.find(left) is not None for left, _ in _cuts(line))
    image = None if names_image else images.find(line)
    return None if image is None else Entry(image, None)


def _cuts(line: str) -> Iterator[tuple[str, str]]:
    """Every way to cut a line in two."""
    for separator in _SEPARATOR.finditer(line):
        yield line[: separator.start()], line[separator.end() :]


def _explain(line: str, images: Index) -> str:
    several = images.find_several(line)
    if several:
        return (
            f"`{line}` is the name of several images ({', '.join(several[:_NAMED])}); write the folder in front of it"
        )
    for left, right in _cuts(line[:_LONGEST_LINE]):
        if images.find(left) is not None:
            return (
                f"`{right}` after the image {left} is not a mask in masks/; write one image, or an image and its mask"
            )
    return f"`{line[:_SHOWN]}` is not an image in images/"
