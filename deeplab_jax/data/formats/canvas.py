"""The label of an image on which the shapes of annotations are drawn."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool

from deeplab_jax.data.formats.rasterize import DegenerateShape
from deeplab_jax.errors import UserError


class Canvas:
    """The label of one image, on which shapes are drawn in order.

    Attributes:
      size: (height, width).
      label: class ids, 0 where nothing is drawn.
      shapes: number of shapes drawn.
      skipped: the shapes that cover no area, each with the reason.
    """

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self.label = np.zeros(size, np.uint8)
        self.shapes = 0
        self.skipped: list[str] = []

    def check_size(self, shape: tuple[int, ...], name: object) -> None:
        """Checks that a mask has the size of the image.

        Raises:
          UserError: it has another size; `name` is its file.
        """
        if shape != self.size:
            raise UserError(
                f"mask {name} is {shape[0]}x{shape[1]} (height x width), but its image is {self.size[0]}x{self.size[1]}"
            )

    def paint_smallest_on_top(self, drawn: Iterable[tuple[int, "CroppedMask"]]) -> None:
        """Paints masks and their classes, the largest first. Masks of equal area stay in order."""
        for class_id, mask in sorted(drawn, key=lambda item: -item[1].area):
            mask.paint(self.label, class_id)

    def paint(self, class_id: int, entry: str, draw: Callable[[tuple[int, int]], Bool[np.ndarray, "h w"]]) -> None:
        """Paints a shape over those before it, or counts it as skipped if it covers no pixel.

        Args:
          class_id: its class.
          entry: the file and the shape, for the report.
          draw: takes the size and returns the pixels of the shape; it may raise `DegenerateShape`.
        """
        if (mask := self.draw(entry, draw)) is not None:
            self.label[mask] = class_id

    def paint_all(
        self,
        shapes: Iterable[tuple[str, dict[str, Any], int]],
        fill: Callable[[dict[str, Any], tuple[int, int], str], Bool[np.ndarray, "h w"]],
    ) -> None:
        """Paints shapes in order, see `paint`.

        Args:
          shapes: the file and the shape for messages, the shape, and its class.
          fill: takes a shape, the size and the first of these, and returns the pixels of the shape.
        """
        for entry, shape, class_id in shapes:
            self.paint(class_id, entry, lambda size, shape=shape, entry=entry: fill(shape, size, entry))

    def draw(
        self, entry: str, draw: Callable[[tuple[int, int]], Bool[np.ndarray, "h w"]]
    ) -> Bool[np.ndarray, "h w"] | None:
        """Draws a shape without painting it; see `paint`. None if it is skipped."""
        try:
            mask = draw(self.size)
            if not mask.any():
                raise DegenerateShape("it covers no pixel of the image")
        except DegenerateShape as reason:
            self.skipped.append(f"{entry}: {reason}")
            return None
        self.shapes += 1
        return mask


class CroppedMask:
    """A mask without the empty rows and columns around it: images with hundreds of masks would fill the memory.

    Attributes:
      area: number of its pixels.
    """

    def __init__(self, mask: Bool[np.ndarray, "height width"]):
        """Crops a mask, which is not empty."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        self._place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        self._mask = mask[self._place].copy()
        self.area = int(np.count_nonzero(mask))

    def paint(self, label: np.ndarray, class_id: int) -> None:
        """Paints the mask on a label."""
        label[self._place][self._mask] = class_id


def place(
    mask: Bool[np.ndarray, "rows columns"], corner: tuple[int, int], size: tuple[int, int]
) -> Bool[np.ndarray, "height width"]:
    """Places a small mask in an image, and cuts off what is outside.

    Args:
      mask: the mask.
      corner: (x, y) of its upper left pixel.
      size: (height, width) of the image.
    """
    x, y = corner
    top, left = max(0, y), max(0, x)
    bottom, right = min(size[0], y + mask.shape[0]), min(size[1], x + mask.shape[1])
    placed = np.zeros(size, bool)
    if top < bottom and left < right:
        placed[top:bottom, left:right] = mask[top - y : bottom - y, left - x : right - x]
    return placed
