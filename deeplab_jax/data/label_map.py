"""Label maps: the class of each id or color that mask files contain.

Data sets number their classes in their own ways: Cityscapes has 35 ids of which 19 are scored, ADE20K begins at 1 and
has 0 for unlabeled pixels, panoptic masks have ids above 255. A label map is applied once, through a table, when a data
set is prepared. Everything after that sees class ids from 0 and the ignore label.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from deeplab_jax.data import masks
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_COLOR, IGNORE_LABEL, LabelSet

Color = tuple[int, int, int]

#: The largest source id: that of a 16-bit PNG.
LARGEST_ID = 2**16 - 1


@dataclasses.dataclass(frozen=True, repr=False)
class LabelMap:
    """The class id, or the ignore label, of each source id and source color.

    255 and `IGNORE_COLOR` are ignored unless the map gives them a class. Create one with `LabelMap.create`.

    Attributes:
      num_classes: number of classes.
      ids: class id or ignore label by source id. Of several ids of a class, the first is written by `to_source`.
      colors: class id or ignore label by RGB color.
    """

    num_classes: int
    ids: Mapping[int, int]
    colors: Mapping[Color, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for source in self.ids:
            if not 0 <= source <= LARGEST_ID:
                raise UserError(f"source id {source} of a label map is not from 0 to {LARGEST_ID}")
        for color in self.colors:
            if len(color) != 3 or not all(0 <= value <= 255 for value in color):
                raise UserError(f"source color {color} of a label map is not three integers from 0 to 255")
        for target in {*self.ids.values(), *self.colors.values()}:
            if not 0 <= target < self.num_classes and target != IGNORE_LABEL:
                raise UserError(f"a label map names class {target}, but there are {self.num_classes} classes")
        object.__setattr__(self, "ids", {IGNORE_LABEL: IGNORE_LABEL} | dict(self.ids))
        object.__setattr__(self, "colors", {IGNORE_COLOR: IGNORE_LABEL} | dict(self.colors))

    def __repr__(self) -> str:
        return f"LabelMap({len(self.ids)} ids and {len(self.colors)} colors to {self.num_classes} classes)"

    @classmethod
    def create(
        cls,
        label_set: LabelSet,
        *,
        ids: Sequence[int | Sequence[int]] | None = None,
        ignore_ids: Iterable[int] = (),
        ignore_colors: Iterable[Color] = (),
        reduce_zero_label: bool = False,
    ) -> "LabelMap":
        """Creates a label map.

        Args:
          label_set: the classes; their palette are the source colors.
          ids: the source id of each class in order, or several ids (default: 0 for the first class, 1 for the second).
          ignore_ids: source ids of unlabeled pixels, also if they are ids of a class.
          ignore_colors: source colors of unlabeled pixels.
          reduce_zero_label: 0 is ignored, and the ids of the classes begin at 1; instead of `ids`.

        Raises:
          UserError: an id belongs to two classes, or is not from 0 to 65535.
        """
        if ids is not None and reduce_zero_label:
            raise UserError(
                "reduce_zero_label numbers the classes from 1; leave it out if classes have ids of their own"
            )
        count = label_set.num_classes
        sources = [*range(1, count + 1)] if reduce_zero_label else [*range(count)] if ids is None else ids
        if len(sources) != count:
            raise UserError(f"a label map has {len(sources)} entries for {count} classes")
        targets = {0: IGNORE_LABEL} if reduce_zero_label else {}
        for index, found in enumerate(sources):
            for source in [found] if isinstance(found, int) else found:
                if source in targets:
                    other = targets[source]
                    raise UserError(
                        f"source id {source} belongs to two classes, {label_set.class_names[other]} and "
                        f"{label_set.class_names[index]}"
                    )
                targets[source] = index
        targets |= dict.fromkeys(ignore_ids, IGNORE_LABEL)
        colors = {color: index for index, color in enumerate(label_set.palette)}
        return cls(count, targets, colors | dict.fromkeys(ignore_colors, IGNORE_LABEL))

    @classmethod
    def from_json(cls, values: Mapping[str, object], num_classes: int) -> "LabelMap":
        """Creates a label map from what `to_json` returned and a file stored.

        Raises:
          ValueError, TypeError, KeyError: the values have another form.
          UserError: an id or a color is out of range.
        """
        ids = {int(source): int(target) for source, target in values["ids"]}
        colors = {(int(r), int(g), int(b)): int(target) for r, g, b, target in values["colors"]}
        return cls(num_classes, ids, colors)

    def to_json(self) -> dict[str, list[list[int]]]:
        """The map in values that JSON can store."""
        return {
            "ids": [[source, target] for source, target in self.ids.items()],
            "colors": [[*color, target] for color, target in self.colors.items()],
        }

    @property
    def is_identity(self) -> bool:
        """True if source ids are class ids."""
        return all(source == target for source, target in self.ids.items())

    @functools.cached_property
    def color_codes(self) -> dict[int, int]:
        """Class id or ignore label by color code, see `masks.color_code`."""
        return {masks.color_code(color): target for color, target in self.colors.items()}

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """The class id of each source id, and whether the map names it. The last entry stands for all larger ids.

        It has at least 257 entries, so every uint8 is an index.
        """
        table = np.full(max(self.ids) + 2, IGNORE_LABEL, np.uint8)
        known = np.zeros(len(table), bool)
        for source, target in self.ids.items():
            table[source], known[source] = target, True
        return table, known

    def apply(self, values: Integer[np.ndarray, "height width"], name: object) -> UInt8[np.ndarray, "height width"]:
        """Maps source ids to class ids.

        Args:
          values: source ids; a new array is returned.
          name: the mask, for the message.

        Raises:
          UnknownLabels: a source id is not in the map.
        """
        table, known = self._table
        positions = values
        if values.dtype != np.uint8:  # a negative id is as unknown as a large one
            positions = values.astype(np.int64)
            positions[(positions < 0) | (positions >= len(table))] = len(table) - 1
        is_known = np.take(known, positions)
        if not is_known.all():
            unnamed = values[~is_known]
            raise masks.UnknownLabels(
                f"mask {name} contains id {int(unnamed[0])}, which the label map does not name; make it the id of a "
                "class, or ignore it",
                unnamed,
            )
        return np.take(table, positions)

    def read(self, path: pathlib.Path) -> UInt8[np.ndarray, "height width"]:
        """Reads a mask file: gray values and palette indices are source ids, RGB values are source colors.

        Transparency is ignored.

        Raises:
          UserError: the file is missing or damaged, or contains an id or a color that is not in the map.
        """
        mask = masks.load_mask(path)
        if mask.kind == "RGB":
            return masks.look_up_colors(mask.codes(), self.color_codes, path)
        return self.apply(mask.values, path)

    def to_source(self, label: UInt8[np.ndarray, "height width"]) -> Integer[np.ndarray, "height width"]:
        """Maps class ids back to source ids, for files in the data set's own numbering such as submissions.

        Args:
          label: class ids; 255 becomes the first source id that is ignored.

        Returns:
          uint8 source ids, or uint16 if one of them is above 255.

        Raises:
          ValueError: a class has no source id, or a label is not a class.
        """
        sources = {}
        for source, target in self.ids.items():
            if target != IGNORE_LABEL:
                sources.setdefault(target, source)
        # 255 is in every map; another ignored id is the data set's own.
        ignored = [source for source, target in self.ids.items() if target == IGNORE_LABEL]
        if ignored:
            sources[IGNORE_LABEL] = next((source for source in ignored if source != IGNORE_LABEL), IGNORE_LABEL)
        table = np.zeros(256, np.uint16 if max(sources.values()) > 255 else np.uint8)
        for target, source in sources.items():
            table[target] = source
        missing = set(np.unique(label).tolist()) - set(sources)
        if missing:
            raise ValueError(f"label {min(missing)} has no source id in the label map")
        return np.take(table, label)
