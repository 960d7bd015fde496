"""The values that the masks of a data set contain, on which `mask_reading` decides how they are read."""

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np

from deeplab_jax import progress
from deeplab_jax.data import masks, process_pool
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_COLOR, IGNORE_LABEL

_MOST_COLORS = 10_000  # beyond this a data set has no colors of classes, and counting them takes memory


class Survey:
    """The values that the masks of a data set contain.

    Attributes:
      values: for each kind, every visible value and the first file that contains it.
      colors: the color codes of each palette index, with the first file that has it.
      hidden_colors: the color codes of transparent palette indices.
      has_hidden: whether a mask has transparent pixels apart from those of a gray value or palette index.
      has_visible: whether any pixel of any mask can be seen.
      only_255: the masks that contain 0 and 255 and nothing else.
      with_255: whether a mask contains 255 and an id other than 0.
    """

    def __init__(self, paths: Iterable[pathlib.Path]):
        """Reads all masks; those that cannot be read are skipped, they raise when their example is read."""
        self.values: dict[masks.Kind, dict[int, pathlib.Path]] = {"gray": {}, "palette": {}, "RGB": {}}
        self.colors: dict[int, dict[int, pathlib.Path]] = {}
        self.hidden_colors: set[int] = set()
        self.has_hidden = self.has_visible = self.with_255 = False
        self.only_255: list[pathlib.Path] = []
        paths = list(paths)
        for found in progress.track(process_pool.map_in_order(_find_values, paths), "read masks", total=len(paths)):
            if found is not None:
                self._add(found)

    def _add(self, found: "_Values") -> None:
        self.has_hidden |= found.has_hidden
        self.has_visible |= bool(found.visible)
        values = self.values[found.kind]
        for value in found.visible[: _MOST_COLORS - len(values)]:
            values.setdefault(value, found.path)
        self.hidden_colors |= found.hidden_colors
        for index, code in found.colors.items():
            self.colors.setdefault(index, {}).setdefault(code, found.path)
        ids = found.visible
        if found.kind == "RGB":
            ids = [code & 255 for code in ids] if all(map(is_gray, ids)) else []
        if IGNORE_LABEL in ids and not found.has_ignore_color:
            others = set(ids) - {0, IGNORE_LABEL}
            self.with_255 |= bool(others)
            if not others and 0 in ids:
                self.only_255.append(found.path)


@dataclasses.dataclass(frozen=True)
class _Values:
    """The values that one mask contains: the part of its pixels that other processes send."""

    path: pathlib.Path
    kind: masks.Kind
    visible: list[int]
    has_hidden: bool
    colors: dict[int, int]
    hidden_colors: set[int]
    has_ignore_color: bool


def _find_values(path: pathlib.Path) -> _Values | None:
    """The values of a mask; None if it cannot be read, which its example reports."""
    try:
        mask = masks.load_mask(path)
    except UserError:
        return None
    visible = mask.values.ravel()
    has_hidden = mask.hidden is not None and not mask.hidden_by_value
    if has_hidden:
        visible = visible[~mask.hidden.ravel()]
    found, colors, hidden = _distinct(visible), {}, set()
    if mask.palette is not None:
        hidden = set() if mask.hidden is None else set(_distinct(mask.values[mask.hidden]))
        colors = {index: int(mask.palette[index]) for index in set(found) - hidden}
        hidden = {int(mask.palette[index]) for index in hidden}
    return _Values(path, mask.kind, found, has_hidden, colors, hidden, _is_ignore_color(mask))


def _distinct(values: np.ndarray) -> list[int]:
    """The distinct values, sorted. Masks have long runs of equal values, and only the first of each is sorted."""
    flat = values.ravel()
    if not flat.size:
        return []
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return [int(value) for value in np.unique(np.append(flat[starts], flat[0]))]


def is_gray(code: int) -> bool:
    """Whether the color of a code is gray."""
    return code == (code & 255) * 0x010101


def _is_ignore_color(mask: masks.StoredMask) -> bool:
    return mask.palette is not None and int(mask.palette[IGNORE_LABEL]) == masks.color_code(IGNORE_COLOR)
