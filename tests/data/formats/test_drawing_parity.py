"""Shapes cover the pixels that the tools' own libraries give them; see goldens/make_annotation_tools.py."""

import json
import pathlib

import numpy as np
import pytest

from deeplab_jax.data.formats import coco, label_studio, labelme, run_lengths, supervisely, yolo
from deeplab_jax.data.formats.rasterize import DegenerateShape, check_points, fill_coco

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens" / "annotation_tools.npz"


def draw_coco(segmentation, size):
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    return np.any([coco.fill_part(part, size) for part in parts], axis=0)


DRAW = {
    "coco": draw_coco,
    "labelme": lambda shape, size: labelme.fill_shape(shape, size, "a shape"),
    "label_studio": label_studio.fill_region,
    "yolo": yolo.fill_line,
    "supervisely": lambda shape, size: supervisely.fill_object(shape, size, "an object"),
}


@pytest.mark.parametrize("tool", DRAW)
def test_shapes_are_drawn_as_the_tool_draws_them(tool):
    with np.load(GOLDENS) as stored:
        size = tuple(stored["size"].tolist())
        shapes = json.loads(stored[f"{tool}:shapes"].tobytes())
        masks = np.unpackbits(stored[f"{tool}:masks"], count=len(shapes) * size[0] * size[1])
    masks = masks.reshape(len(shapes), *size).astype(bool)
    for position, (shape, expected) in enumerate(zip(shapes, masks, strict=True)):
        drawn = DRAW[tool](shape, size)
        assert drawn.shape == size
        assert (drawn == expected).all(), (position, np.count_nonzero(drawn != expected))


@pytest.mark.peers
def test_polygons_are_those_of_pycocotools():
    mask_utils = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    rng = np.random.default_rng(0)
    for i in range(2000):
        size = tuple(rng.integers(1, 70, 2).tolist())
        points = rng.uniform(-10, 80, (rng.integers(3, 12), 2)).round(i % 3)
        expected = mask_utils.decode(mask_utils.frPyObjects([points.ravel().tolist()], *size))[..., 0]
        assert (fill_coco(points, size) == expected.astype(bool)).all()


def test_a_box_covers_its_pixels():
    corners = np.array([(2.0, 1.0), (6.0, 1.0), (6.0, 4.0), (2.0, 4.0)])
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:6] = True
    assert (fill_coco(corners, (6, 8)) == expected).all()
    assert (fill_coco(corners[::-1].copy(), (6, 8)) == expected).all()


def test_run_lengths_of_rows_come_back():
    mask = np.random.default_rng(0).random((7, 9)) > 0.5
    for other in (mask, ~mask, np.zeros_like(mask), np.ones_like(mask)):
        assert (run_lengths.decode_runs(run_lengths.encode_runs(other), other.shape) == other).all()


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (None, "not a list"),
        ([], "0 points; at least 3"),
        ([[1, 2], [3, 4]], "2 points; at least 3"),
        ([[1, 2], [3, 4], [5]], "not pairs of numbers"),
        ([[1, 2], [3, 4], [5, "six"]], "not pairs of numbers"),
        ([[1, 2], [3, 4], [5, None]], "far outside"),
        ([[1, 2], [3, 4], [5, float("nan")]], "far outside"),
        ([[1, 2], [3, 4], [5, 1e300]], "far outside"),
        ([[1, 2], [3, 4], [5, 10**400]], "not pairs of numbers"),
        ([[0, 0]] * 100_001, "at most 100000"),
    ],
)
def test_points_are_checked(points, reason):
    with pytest.raises(DegenerateShape, match=reason):
        check_points(points, (20, 30))


def test_an_outline_has_limits():
    rng = np.random.default_rng(0)
    with pytest.raises(DegenerateShape, match="implausibly long"):
        fill_coco(rng.uniform(-30_000, 30_000, (20_000, 2)), (4000, 4000))


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([5, 7], "12 pixels, not 5x3"),
        ([5, -1, 8], "damaged"),
        ([12.0], "damaged"),
        ([10**30], "damaged"),
        ("0~", "damaged"),
        ("o", "damaged"),
        ("é", "damaged"),
        (None, "damaged"),
        (7, "damaged"),
    ],
)
def test_damaged_run_lengths_are_refused(counts, reason):
    with pytest.raises(DegenerateShape, match=reason):
        run_lengths.decode_coco({"size": [3, 5], "counts": counts}, (3, 5))


@pytest.mark.parametrize(
    "values", [None, [1, 2], [300], [0] * 80, [0, 0, 0, 60, 57, 36, 255, 255], [0, 0, 0, 60, 57, 39]]
)
def test_damaged_brush_strokes_are_refused(values):
    with pytest.raises(DegenerateShape, match="brush stroke"):
        run_lengths.decode_brush(values, (3, 5))
