"""Synthetic scenes, drawn from a seed. They need no download.

Textured shapes of five classes overlap on a cloudy background. Their borders have the ignore label. A class is defined
by its outline and the kind of its texture; colors, contrasts, sizes, angles and periods are drawn from ranges that all
classes and the background share.
"""

import os
from typing import Any

import cv2
import numpy as np

from deeplab_jax.data.dataset import Dataset
from deeplab_jax.labels import IGNORE_LABEL, SYNTHETIC

SPLIT_SIZES = {"train": 2000, "val": 200}

_DEFAULT_SIZE = (96, 96)
_BORDER = np.ones((3, 3), np.uint8)  # outlines are ignored, one pixel to each side
_SUBPIXEL_BITS = 4


class SyntheticSource:
    """One split of the scenes. An example depends only on the split, the position and the size."""

    name = "synthetic"
    label_set = SYNTHETIC

    def __init__(self, split: str, num_examples: int | None = None, size: tuple[int, int] | None = None):
        self.split = split
        self._num_examples = SPLIT_SIZES[split] if num_examples is None else num_examples
        self._size = _DEFAULT_SIZE if size is None else tuple(size)

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example: `image` and `label` as arrays, `id` as text."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng([list(SPLIT_SIZES).index(self.split), index])
        image, label = draw_scene(rng, self._size)
        return {"image": image, "label": label, "id": self._id(index)}

    def __repr__(self) -> str:
        return f"SyntheticSource({self.split}, {len(self)} examples)"

    def ids(self) -> list[str]:
        """The ids of all examples, in order."""
        return [self._id(index) for index in range(len(self))]

    def largest_size(self) -> tuple[int, int]:
        """The (height, width) of all scenes."""
        return self._size

    def _id(self, index: int) -> str:
        return f"{self.split}_{index:05d}"


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scene with three to six shapes, later ones in front.

    Args:
      rng: random generator of the scene.
      size: (height, width).

    Returns:
      The uint8 RGB image, and its uint8 label.
    """
    canvas, label = _texture("background", rng, size), np.zeros(size, np.uint8)
    for _ in range(rng.integers(3, 7)):
        class_id = int(rng.integers(1, SYNTHETIC.num_classes))
        name = SYNTHETIC.class_names[class_id]
        shape = _shape(name, rng, size)
        inside = shape > 0
        canvas[inside] = _texture(name, rng, size)[inside]
        label[inside] = class_id
        label[(cv2.dilate(shape, _BORDER) > 0) & (cv2.erode(shape, _BORDER) == 0)] = IGNORE_LABEL
    canvas += rng.normal(0, 6, canvas.shape).astype(np.float32)
    return np.clip(canvas, 0, 255).astype(np.uint8), label


def _shape(name: str, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A filled shape, 1 inside, at a random place, size and angle."""
    height, width = size
    radius = min(size) * rng.uniform(0.14, 0.28)
    center = np.array([rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height])
    angle = rng.uniform(0, 2 * np.pi)
    mask = np.zeros(size, np.uint8)
    if name in ("disk", "ring"):
        outlines = [_polygon(32, 1.0)] + ([_polygon(32, 0.5)] if name == "ring" else [])
    elif name == "triangle":
        outlines = [_polygon(3, 1.2)]
    elif name == "star":
        radii = np.tile([1.25, 0.5], 5)
        turns = np.arange(10) * np.pi / 5
        outlines = [radii[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)]
    else:  # bar
        outlines = [np.array([[-1.4, -0.32], [1.4, -0.32], [1.4, 0.32], [-1.4, 0.32]])]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for i, outline in enumerate(outlines):
        points = (outline @ turn.T) * radius + center
        fixed_point = np.round(points * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(mask, [fixed_point], 1 - i, shift=_SUBPIXEL_BITS)  # the second outline is a hole
    return mask


def _polygon(corners: int, radius: float) -> np.ndarray:
    turns = np.arange(corners) * 2 * np.pi / corners
    return radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)


def _texture(name: str, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A float32 RGB surface: two random colors, mixed by the pattern of the class."""
    height, width = size
    colors = rng.uniform(20, 235, (2, 3)).astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 9)
    if name == "background":  # clouds
        coarse = rng.random((max(2, height // 12), max(2, width // 12)), np.float32)
        mix = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    elif name == "bar":  # plain
        mix = np.zeros(size, np.float32)
    elif name == "star":  # speckles
        mix = (rng.random(size, np.float32) < 0.3).astype(np.float32)
    else:
        y, x = np.mgrid[:height, :width].astype(np.float32) * (2 * np.pi / period)
        along = np.sin(x * np.cos(angle) + y * np.sin(angle))
        across = np.sin(y * np.cos(angle) - x * np.sin(angle))
        mix = {
            "disk": along > 0,  # stripes
            "ring": along * across > 0,  # checks
            "triangle": np.minimum(along, across) > 0.2,  # dots
        }[name].astype(np.float32)
    return colors[0] + mix[..., None] * (colors[1] - colors[0])


def _open_split(
    split: str, *, data_dir: os.PathLike, num_examples: int | None, image_size: tuple[int, int] | None
) -> SyntheticSource:
    del data_dir
    return SyntheticSource(split, num_examples if split == "train" else None, image_size)


# All scenes are alike, so a sample is enough to check them.
DATASET = Dataset(name="synthetic", open_split=_open_split, splits=tuple(SPLIT_SIZES), check_limit=100)
