"""Polygons of regions: drawn again they are the same pixels, and simplified they stay within a pixel of the outline."""

import cv2
import numpy as np
import pytest

from deeplab_jax.data.formats.outlines import area, find_polygons
from deeplab_jax.data.formats.rasterize import fill_coco, fill_pillow

DRAW = {"coco": (fill_coco, 0.0), "pillow": (fill_pillow, 0.5)}


def noise(seed: int, size=(31, 47)) -> np.ndarray:
    """Single pixels, thin lines, corners that touch, holes in holes."""
    return np.random.default_rng(seed).random(size) > 0.5


def blobs(seed: int, size=(60, 80)) -> np.ndarray:
    coarse = np.random.default_rng(seed).random((size[0] // 8, size[1] // 8)).astype(np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC) > 0.5


def ring() -> np.ndarray:
    """A ring with an island in its hole, and another hole."""
    yy, xx = np.mgrid[:50, :50]
    radius = np.hypot(yy - 25, xx - 25)
    mask = (radius < 22) & (radius > 12) | (radius < 6)
    mask[24:26, 5:8] = False
    return mask


def draw(polygons, size, fill) -> np.ndarray:
    mask = np.zeros(size, bool)
    for polygon in polygons:
        mask |= fill(polygon, size)
    return mask


def near_outline(mask: np.ndarray) -> np.ndarray:
    """The pixels that have another value, or the edge of the image, among their eight neighbors."""
    padded = np.pad(mask, 1).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    return (cv2.dilate(padded, kernel) != cv2.erode(padded, kernel))[1:-1, 1:-1]


MASKS = {f"noise{i}": noise(i) for i in range(3)} | {f"blobs{i}": blobs(i) for i in range(3)} | {"ring": ring()}
MASKS |= {"empty": np.zeros((5, 6), bool), "full": np.ones((5, 6), bool), "pixel": np.eye(1, 1, dtype=bool)}


@pytest.mark.parametrize("rule", DRAW)
@pytest.mark.parametrize("name", MASKS)
def test_polygons_without_tolerance_are_exact(name, rule):
    fill, inset = DRAW[rule]
    mask = MASKS[name]
    assert (draw(find_polygons(mask, tolerance=0, inset=inset), mask.shape, fill) == mask).all()


@pytest.mark.parametrize("rule", DRAW)
@pytest.mark.parametrize("name", MASKS)
def test_simplified_polygons_stay_within_a_pixel(name, rule):
    fill, inset = DRAW[rule]
    mask = MASKS[name]
    polygons = find_polygons(mask, tolerance=1.0, inset=inset)
    differs = draw(polygons, mask.shape, fill) != mask
    assert not (differs & ~near_outline(mask)).any()
    assert len(polygons) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
    assert sum(map(len, polygons)) <= sum(map(len, find_polygons(mask, tolerance=0)))


def test_a_hole_is_cut_out():
    (outer, island) = sorted(find_polygons(ring(), tolerance=0), key=lambda polygon: -area(polygon))
    assert area(outer) + area(island) == np.count_nonzero(ring())
    assert not fill_coco(outer, (50, 50))[25, 25]
