"""Confusion matrices against a pixel-by-pixel count; scores against cases computed by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deeplab_jax.evaluation.metrics import ClassCounts, Totals, confusion_matrix, scores


def maps(num_classes=5, batch=8):
    """uint8 labels with about every fifth pixel ignored, and predictions."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, (batch, 6, 7)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = 255
    return labels, rng.integers(0, num_classes, labels.shape).astype(np.uint8)


def slow_confusion(labels, predictions, num_classes=5):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if label != 255:
            matrix[label, prediction] += 1
    return matrix


def fast_confusion(labels, predictions, num_classes=5, where=None, **options):
    where = None if where is None else jnp.asarray(where)
    return confusion_matrix(
        jnp.asarray(labels), jnp.asarray(predictions), num_classes=num_classes, where=where, **options
    )


def test_equals_a_count_pixel_by_pixel():
    labels, predictions = maps()
    matrix = fast_confusion(labels, predictions)
    np.testing.assert_array_equal(matrix, slow_confusion(labels, predictions))
    assert matrix.dtype == jnp.int32


def test_ignored_pixels_as_background_count_as_class_zero():
    labels, predictions = maps()
    matrix = fast_confusion(labels, predictions, ignored_pixels="background")
    as_keras = np.where(labels == 255, 0, labels)  # the arg max of an all-zero one-hot vector
    np.testing.assert_array_equal(matrix, slow_confusion(as_keras, predictions))
    assert int(matrix.sum()) == labels.size


@pytest.mark.parametrize("ignored_pixels", ["exclude", "background"])
def test_pixels_that_do_not_exist_are_not_counted(ignored_pixels):
    labels, predictions = maps()
    where = np.random.default_rng(1).random(labels.shape) < 0.7
    matrix = fast_confusion(labels, predictions, where=where, ignored_pixels=ignored_pixels)
    as_scored = labels if ignored_pixels == "exclude" else np.where(labels == 255, 0, labels)
    np.testing.assert_array_equal(matrix, slow_confusion(as_scored[where], predictions[where]))


def test_counts_beyond_float32_are_exact():
    pixels = 2**24 + 1  # the first whole number that float32 does not hold
    matrix = jax.jit(lambda y: confusion_matrix(y, y, num_classes=2))(jnp.ones((1, 1, pixels), jnp.uint8))
    np.testing.assert_array_equal(matrix, [[0, 0], [0, pixels]])


def test_a_sharded_batch_is_counted_without_gathering():
    devices = jax.devices()
    labels, predictions = maps(batch=2 * len(devices))
    sharding = NamedSharding(jax.sharding.Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
    count = jax.jit(lambda y, p: confusion_matrix(y, p, num_classes=5))
    arguments = [jax.device_put(x, sharding) for x in (labels, predictions)]
    np.testing.assert_array_equal(count(*arguments), slow_confusion(labels, predictions))
    assert "all-gather" not in count.lower(*arguments).compile().as_text()


def test_scores_of_a_small_case_by_hand():
    # Class "c" is absent; "d" is predicted twice and never true.
    confusion = np.array([[6, 1, 0, 1], [2, 9, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    result = scores(confusion, ("a", "b", "c", "d"))
    assert result["per_class_iou"] == {"a": 6 / 10, "b": 9 / 13, "c": None, "d": 0.0}
    assert result["mean_iou"] == pytest.approx((6 / 10 + 9 / 13 + 0) / 3)
    assert result["pixel_accuracy"] == 15 / 20
    assert result["mean_accuracy"] == pytest.approx((6 / 8 + 9 / 12) / 2)
    assert result["frequency_weighted_iou"] == pytest.approx(8 / 20 * 6 / 10 + 12 / 20 * 9 / 13)
    assert result["per_class_dice"] == {"a": 12 / 16, "b": 18 / 22, "c": None, "d": 0.0}
    assert result["mean_dice"] == pytest.approx((12 / 16 + 18 / 22 + 0) / 3)
    assert result["per_class_precision"] == {"a": 6 / 8, "b": 9 / 10, "c": None, "d": 0.0}
    assert result["mean_precision"] == pytest.approx((6 / 8 + 9 / 10 + 0) / 3)
    assert result["per_class_recall"] == {"a": 6 / 8, "b": 9 / 12, "c": None, "d": None}
    assert result["num_pixels"] == 20


def test_scores_per_class_equal_those_of_each_class_against_the_rest():
    labels, predictions = maps()
    result = scores(slow_confusion(labels, predictions), tuple("abcde"))
    counted = labels != 255
    for label, name in enumerate("abcde"):
        truth, predicted = (labels == label)[counted], (predictions == label)[counted]
        both = np.sum(truth & predicted)
        assert result["per_class_iou"][name] == both / np.sum(truth | predicted)
        assert result["per_class_dice"][name] == 2 * both / (truth.sum() + predicted.sum())
        assert result["per_class_precision"][name] == both / predicted.sum()
        assert result["per_class_recall"][name] == both / truth.sum()


def test_counts_of_labels_equal_those_of_their_confusion_matrix():
    labels, predictions = maps()
    counted = labels != 255
    counts = ClassCounts.from_labels(labels[counted], predictions[counted], 5)
    expected = ClassCounts.from_confusion(slow_confusion(labels, predictions))
    np.testing.assert_array_equal(counts.to_json(), expected.to_json())
    # Ids of `num_classes` and above, such as the ignore label, are not counted.
    others = ClassCounts.from_labels(labels, predictions, 5)
    np.testing.assert_array_equal(others.truth, expected.truth)
    assert others.predicted.sum() == labels.size


def test_mean_iou_equals_that_of_keras():
    labels, predictions = maps(num_classes=7)
    labels[labels == 3] = 0
    predictions[predictions == 3] = 1  # class 3 is nowhere
    matrix = np.asarray(fast_confusion(labels, predictions, 7, ignored_pixels="background"), np.int64)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    keras = np.sum(np.diag(matrix) / (union + 1e-7)) / np.sum(union > 0)
    # Keras' epsilon of 1e-7 pixels moves a class of 50 pixels by 2e-9.
    assert scores(matrix, tuple("abcdefg"))["mean_iou"] == pytest.approx(keras, rel=1e-8)


def test_sums_beyond_int32_are_exact():
    result = scores(np.array([[3 * 2**40, 2**40], [0, 2**40]]), ("a", "b"))
    assert result["num_pixels"] == 5 * 2**40
    assert result["per_class_iou"] == {"a": 0.75, "b": 0.5}


def test_without_labeled_pixels_scores_are_none():
    result = scores(np.zeros((2, 2), np.int64), ("a", "b"))
    assert result == {
        "mean_iou": None,
        "pixel_accuracy": None,
        "mean_accuracy": None,
        "frequency_weighted_iou": None,
        "mean_dice": None,
        "mean_precision": None,
        **{f"per_class_{name}": {"a": None, "b": None} for name in ("iou", "dice", "precision", "recall")},
        "num_pixels": 0,
    }


def test_totals_sum_the_reports_of_steps():
    totals = Totals(2)
    step = {
        "confusion": jnp.array([[2**30, 0], [2**29, 2**29]], jnp.int32),
        "loss_sum": jnp.asarray(6.0),
        "loss_count": jnp.asarray(4, jnp.int32),
        "num_images": jnp.asarray(3, jnp.int32),
    }
    for _ in range(4):
        totals.add(step)
    result = totals.scores(("a", "b"))
    assert result["num_pixels"] == 4 * 2**31  # no int32 holds it
    assert result["per_class_iou"] == {"a": 2 / 3, "b": 0.5}
    assert result["loss"] == 1.5
    assert totals.num_images == 12
    assert Totals(2).scores(("a", "b"))["loss"] is None


def test_each_term_of_a_loss_has_a_mean_of_its_own():
    """The loss of a split does not depend on how its images are grouped."""
    totals = Totals(1)
    for pixels, images in ((6, 1), (2, 3)):
        terms = {"cross_entropy": (jnp.float32(3), jnp.int32(pixels)), "dice": (jnp.float32(0.5), jnp.int32(images))}
        totals.add(
            {"confusion": jnp.ones((1, 1), jnp.int32), "loss_sum": 9.0, "loss_count": images, "loss_terms": terms}
        )
    restored = Totals.from_json(json.loads(json.dumps(totals.to_json())))
    for each in (totals, restored):
        scores = each.scores(("a",))
        assert scores["loss_terms"] == {"cross_entropy": 6 / 8, "dice": 1 / 4}
        assert scores["loss"] == 1.0
    saved_by_an_earlier_version = totals.to_json()
    del saved_by_an_earlier_version["loss_terms"]
    assert Totals.from_json(saved_by_an_earlier_version).scores(("a",))["loss"] == 18 / 4


def test_totals_survive_json_exactly():
    totals = Totals(2)
    report = {"confusion": jnp.array([[3, 1], [0, 7]], jnp.int32), "loss_sum": jnp.float32(0.1), "loss_count": 7}
    totals.add(report | {"num_images": 2})
    restored = Totals.from_json(json.loads(json.dumps(totals.to_json())))
    for each in (totals, restored):
        each.add(report)
    np.testing.assert_array_equal(restored.confusion, totals.confusion)
    assert restored.confusion.dtype == np.int64
    assert restored.to_json() == totals.to_json()
