"""Scenes drawn by code from a seed: the embedded default, which needs no download.

Textured shapes of five classes lie over cloudy ground, cover each other, and have a border of void pixels. A class is
told by its outline and by the kind of its texture; colors, contrasts, sizes, angles and periods are drawn from ranges
that all classes and the ground share.
"""

from typing import Any

import cv2
import numpy as np

from deeplab_jax.labels import IGNORE_LABEL, SYNTHETIC

SPLIT_SIZES = {"train": 2000, "val": 200}

_DEFAULT_SIZE = (96, 96)
_BORDER = np.ones((3, 3), np.uint8)  # outlines are void one pixel to each side
_SUBPIXEL_BITS = 4


class SyntheticSource:
    """One split of the scenes; an example is a pure function of split, position and size."""

    name = "synthetic"
    label_set = SYNTHETIC

    def __init__(self, split: str, num_examples: int | None = None, size: tuple[int, int] | None = None):
        self.split = split
        self._num_examples = SPLIT_SIZES[split] if num_examples is None else num_examples
        self._size = _DEFAULT_SIZE if size is None else tuple(size)

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image` and `label` as arrays, `id` as text."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng([list(SPLIT_SIZES).index(self.split), index])
        image, label_map = draw_scene(rng, self._size)
        return {"image": image, "label": label_map, "id": self._id(index)}

    def __repr__(self) -> str:
        return f"SyntheticSource({self.split}, {len(self)} examples)"

    def ids(self) -> list[str]:
        """Every example's id, in order."""
        return [self._id(index) for index in range(len(self))]

    def largest_size(self) -> tuple[int, int]:
        """All scenes have one size."""
        return self._size

    def _id(self, index: int) -> str:
        return f"{self.split}_{index:05d}"


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One scene of (height, width): uint8 RGB image and labels, with three to six shapes, later ones in front."""
    canvas, label_map = _texture("background", rng, size), np.zeros(size, np.uint8)
    for _ in range(rng.integers(3, 7)):
        label = int(rng.integers(1, SYNTHETIC.num_classes))
        name = SYNTHETIC.class_names[label]
        shape = _shape(name, rng, size)
        inside = shape > 0
        canvas[inside] = _texture(name, rng, size)[inside]
        label_map[inside] = label
        label_map[(cv2.dilate(shape, _BORDER) > 0) & (cv2.erode(shape, _BORDER) == 0)] = IGNORE_LABEL
    canvas += rng.normal(0, 6, canvas.shape).astype(np.float32)
    return np.clip(canvas, 0, 255).astype(np.uint8), label_map


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
    """A float32 RGB surface: two random colors mixed by the class' kind of pattern."""
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
