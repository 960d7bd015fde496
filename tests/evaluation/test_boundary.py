"""Boundary IoU and trimaps against the definitions, pixel by pixel."""

import itertools

import cv2
import numpy as np
import pytest

from deeplab_jax.evaluation import boundary
from deeplab_jax.evaluation.metrics import ClassCounts

CLASSES = 4


def maps(seed, height=17, width=23, ignored=0.05):
    """A label of coarse regions with single ignored pixels, and a prediction that is shifted and noisy."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, CLASSES, (4, 5), np.uint8)
    label = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    prediction = np.roll(label, (1, 2), (0, 1))
    noisy = rng.random(label.shape) < 0.1
    prediction[noisy] = rng.integers(0, CLASSES, noisy.sum())
    label[rng.random(label.shape) < ignored] = 255
    return label, prediction


def slow_distance(target):
    """The chessboard distance to the nearest pixel of a mask."""
    rows, columns = np.nonzero(target)
    distance = np.full(target.shape, np.inf)
    for row, column in np.ndindex(target.shape):
        if len(rows):
            distance[row, column] = np.maximum(abs(rows - row), abs(columns - column)).min()
    return distance


def slow_boundary(mask, width):
    """The pixels of a mask near a pixel that is not in it, or near the outside of the image."""
    return mask & (slow_distance(np.pad(~mask, 1, constant_values=True))[1:-1, 1:-1] <= width)


@pytest.mark.parametrize(("seed", "ratio"), [(0, 0.02), (1, 0.08), (2, 0.15), (3, 2.0)])
def test_boundary_counts_equal_the_definition(seed, ratio):
    label, prediction = maps(seed)
    counts = boundary.boundary_counts(label, prediction, num_classes=CLASSES, ratio=ratio)
    width = max(1, round(ratio * np.sqrt(17**2 + 23**2)))
    assert boundary.boundary_width(label.shape, ratio) == width
    counted = label != 255
    for each in range(CLASSES):
        truth, predicted = (slow_boundary(array == each, width) & counted for array in (label, prediction))
        assert counts.intersection[each] == np.sum(truth & predicted)
        assert counts.union[each] == np.sum(truth | predicted)


def test_boundary_width_of_photos():
    # 2 % of the diagonals 625 and 2289.7, and never zero.
    assert boundary.boundary_width((375, 500)) == 12
    assert boundary.boundary_width((1024, 2048)) == 46
    assert boundary.boundary_width((8, 8)) == 1


def test_a_shift_costs_boundary_iou_more_than_iou():
    label = np.zeros((100, 100), np.uint8)
    label[20:80, 20:80] = 1
    shifted = np.roll(label, 2, axis=1)
    iou = ClassCounts.from_labels(label, shifted, 2).iou()
    boundary_iou = boundary.boundary_counts(label, shifted, num_classes=2).iou()
    assert iou[1] == pytest.approx(58 / 62)
    # Frames of width 3: 684 pixels. They share two columns less of the long sides and 54 rows of one column twice.
    assert boundary_iou[1] == pytest.approx((684 - 2 * 3 * 2 - 54 * 2 * 2) / (684 + 2 * 3 * 2 + 54 * 2 * 2))


@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_the_definition(seed):
    label, _ = maps(seed, ignored=0.02)
    np.testing.assert_array_equal(boundary.distance_to_ignored(label), slow_distance(label == 255))
    expected = np.full(label.shape, np.inf)
    for each in np.unique(label):
        expected[label == each] = slow_distance(label != each)[label == each]
    np.testing.assert_array_equal(boundary.distance_to_other_label(label), expected)


def test_distances_without_boundaries_are_infinite():
    label = np.ones((5, 7), np.uint8)
    assert np.isposinf(boundary.distance_to_ignored(label)).all()
    assert np.isposinf(boundary.distance_to_other_label(label)).all()
    counts = boundary.trimap_counts(label, label, boundary.distance_to_ignored(label), num_classes=2)
    assert not counts.truth.any()


@pytest.mark.parametrize("seed", range(3))
def test_trimaps_are_dilations_of_the_ignored_pixels(seed):
    label, prediction = maps(seed, ignored=0.01)
    distance = boundary.distance_to_ignored(label)
    counts = boundary.trimap_counts(label, prediction, distance, num_classes=CLASSES, max_width=9)
    for width in range(1, 10):
        square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        inside = (cv2.dilate((label == 255).view(np.uint8), square) > 0) & (label != 255)
        for each in range(CLASSES):
            truth, predicted = (label == each) & inside, (prediction == each) & inside
            assert counts.truth[width - 1, each] == truth.sum()
            assert counts.predicted[width - 1, each] == predicted.sum()
            assert counts.intersection[width - 1, each] == np.sum(truth & predicted)


def test_the_widest_trimap_holds_all_labeled_pixels():
    label, prediction = maps(5)
    for distance in (boundary.distance_to_ignored(label), boundary.distance_to_other_label(label)):
        counts = boundary.trimap_counts(label, prediction, distance, num_classes=CLASSES, max_width=30)
        whole = ClassCounts.from_labels(label[label != 255], prediction[label != 255], CLASSES)
        np.testing.assert_array_equal(counts.truth[-1], whole.truth)
        np.testing.assert_array_equal(counts.iou()[-1], whole.iou())
        assert all((np.diff(counts.truth, axis=0) >= 0).all(axis=0))


def test_a_trimap_by_hand():
    label = np.array([[0, 0, 0, 255, 1, 1, 1]], np.uint8)
    prediction = np.array([[0, 0, 1, 1, 1, 1, 0]], np.uint8)
    counts = boundary.trimap_counts(label, prediction, boundary.distance_to_ignored(label), num_classes=2, max_width=3)
    expected = [[0, 1 / 2], [1 / 2, 2 / 3], [2 / 4, 2 / 4]]
    for width, label_id in itertools.product(range(3), range(2)):
        assert counts.iou()[width, label_id] == expected[width][label_id]
