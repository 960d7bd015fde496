"""Details of an evaluation: scores per image, the worst images, and the sums of several processes."""

import json

import jax
import numpy as np
import pytest

from deeplab_jax.evaluation import boundary, metrics
from deeplab_jax.evaluation.details import Details
from deeplab_jax.parallel import processes

CLASSES = 3
NAMES = ("a", "b", "c")


def example(seed, size=(14, 18)):
    """Image, label with ignored pixels, prediction and confidence. Larger seeds give more mistakes."""
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.integers(0, CLASSES, (2, size[1]), np.uint8), size[0] // 2, axis=0)
    prediction = np.where(rng.random(label.shape) < 0.1 * seed, (label + 1) % CLASSES, label).astype(np.uint8)
    label[:1] = 255
    return rng.integers(0, 256, (*size, 3), np.uint8), label, prediction, rng.random(size, np.float32)


def details_of(seeds, **options):
    details = Details(CLASSES, max_trimap_width=5, **options)
    for seed in seeds:
        details.add_image(f"image {seed}", *example(seed))
    return details


def test_the_score_of_an_image_is_the_mean_over_its_own_classes():
    label = np.array([[0, 0, 1, 255]], np.uint8)
    prediction = np.array([[0, 2, 1, 1]], np.uint8)
    details = Details(4, num_worst=1)
    details.add_image("x", np.zeros((1, 4, 3), np.uint8), label, prediction, np.full((1, 4), 0.5, np.float32))
    (score,) = details.images
    assert score.mean_iou == pytest.approx((1 / 2 + 1 + 0) / 3)  # classes 0, 1 and 2
    assert score.pixel_accuracy == pytest.approx(2 / 3)
    assert score.num_pixels == 3
    assert details.calibration.pixels.sum() == 3


def test_the_worst_images_are_kept_in_order():
    details = details_of([3, 0, 5, 1, 4, 2], num_worst=3)
    assert [each.score.id for each in details.worst] == ["image 5", "image 4", "image 3"]
    assert details.worst[0].score.mean_iou < details.worst[-1].score.mean_iou < 1
    image, label, prediction, _ = example(4)
    for mine, expected in zip(
        (details.worst[1].image, details.worst[1].label, details.worst[1].prediction),
        (image, label, prediction),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, expected)
    assert len(details.images) == 6
    assert details.scores(NAMES)["mean_image_iou"] == pytest.approx(
        np.mean([score.mean_iou for score in details.images])
    )


def test_large_images_are_kept_small():
    details = Details(CLASSES, num_worst=1)
    details.add_image("large", *example(1, (300, 1000)))
    (worst,) = details.worst
    assert worst.image.shape == (144, 480, 3)
    assert worst.label.shape == worst.prediction.shape == (144, 480)
    assert set(np.unique(worst.label)) <= {0, 1, 2, 255}
    assert details.images[0].num_pixels == 299 * 1000


def test_an_image_without_labels_has_no_score():
    details = Details(CLASSES)
    image, label, prediction, confidence = example(0)
    details.add_image("ignored", image, np.full_like(label, 255), prediction, confidence)
    assert (details.images, details.worst) == ([], [])
    scores = details.scores(NAMES)
    assert scores["trimap"] == {}
    assert (scores["mean_image_iou"], scores["mean_boundary_iou"]) == (None, None)


def test_counts_are_summed_over_images():
    details = details_of(range(4))
    counts, curves = metrics.ClassCounts.zeros(CLASSES), metrics.ClassCounts.zeros(5, CLASSES)
    for seed in range(4):
        _, label, prediction, _ = example(seed)
        counts += boundary.boundary_counts(label, prediction, num_classes=CLASSES)
        distance = boundary.distance_to_ignored(label)
        curves += boundary.trimap_counts(label, prediction, distance, num_classes=CLASSES, max_width=5)
    scores = details.scores(NAMES)
    assert scores["per_class_boundary_iou"] == dict(zip(NAMES, counts.iou().tolist(), strict=True))
    curve = scores["trimap"]["ignored"]
    assert curve["widths"] == [1, 2, 3, 4, 5]
    assert curve["mean_iou"] == np.nanmean(curves.iou(), axis=1).tolist()
    assert curve["num_pixels"] == [4 * 18 * width for width in range(1, 6)]  # the first row is ignored
    assert scores["trimap"].keys() == {"ignored", "labels"}


def test_ignored_pixels_as_background_are_counted_everywhere_but_in_trimaps():
    background, excluded = (details_of([2], ignored_pixels=name) for name in ("background", "exclude"))
    assert background.images[0].num_pixels == excluded.images[0].num_pixels + 18
    assert background.boundary.truth[0] > excluded.boundary.truth[0]
    np.testing.assert_array_equal(background.trimaps["ignored"].truth, excluded.trimaps["ignored"].truth)
    np.testing.assert_array_equal(background.worst[0].label, example(2)[1])


def test_processes_add_up_to_one(monkeypatch):
    whole, parts = details_of(range(6), num_worst=3), [details_of(range(r, 6, 2), num_worst=3) for r in (0, 1)]
    sent = [json.loads(json.dumps(part.to_json())) for part in parts]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda value: sent)
    for part in parts:
        part.gather()
        mine, expected = part.scores(NAMES), whole.scores(NAMES)
        # Sums of float64 in another order.
        assert mine.pop("mean_image_iou") == pytest.approx(expected.pop("mean_image_iou"), rel=1e-12)
        calibration, expected_calibration = mine.pop("calibration"), expected.pop("calibration")
        assert calibration.pop("expected_calibration_error") == pytest.approx(
            expected_calibration.pop("expected_calibration_error"), rel=1e-12
        )
        assert calibration["pixels"] == expected_calibration["pixels"]
        assert mine == expected
        assert sorted(part.images) == sorted(whole.images)
        assert [each.score for each in part.worst] == [each.score for each in whole.worst]
        np.testing.assert_array_equal(part.worst[0].image, whole.worst[0].image)
        np.testing.assert_array_equal(part.worst[0].label, whole.worst[0].label)
