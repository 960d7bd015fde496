"""Losses of regions and of boundaries, where another formula gives the same."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from deeplab_jax.losses import boundary_cross_entropy, jaccard, lovasz_softmax, near_boundary, softmax_cross_entropy
from tests.losses.test_cross_entropy import WEIGHTS, batch


@pytest.mark.parametrize("loss", [jaccard, lovasz_softmax])
def test_certain_predictions_lose_what_their_iou_lacks(float64, loss):
    """Both losses extend one minus the Jaccard index of discrete predictions (arXiv 1705.08790, section 2)."""
    _, labels = batch()
    predicted = np.random.default_rng(7).integers(0, 5, labels.shape)
    logits = jnp.asarray(1e3 * (predicted[..., None] == np.arange(5)))
    total, count = loss(logits, labels)
    expected = 0.0
    for label, prediction in zip(np.asarray(labels), predicted, strict=True):
        prediction, label = prediction[label != 255], label[label != 255]
        expected += np.mean(
            [
                1 - np.sum((prediction == c) & (label == c)) / np.sum((prediction == c) | (label == c))
                for c in np.unique(label)
            ]
        )
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    assert count == 2


def test_the_worked_example_of_one_class_against_another(float64):
    """Two pixels of class 0 with errors 0.4 and 0.1, and one of class 1 with the error 0.2, for class 0:
    0.4 * 1/2 + 0.2 * (2/3 - 1/2) + 0.1 * (1 - 2/3); for class 1: 0.4 * 1/2 + 0.2 * (1 - 1/2) + 0.1 * 0."""
    probability = np.array([0.6, 0.9, 0.2])
    logits = jnp.asarray(np.log(np.stack([probability, 1 - probability], axis=-1))).reshape(1, 1, 3, 2)
    total, _ = lovasz_softmax(logits, jnp.array([[[0, 0, 1]]], jnp.uint8))
    of_class_0 = 0.4 * 1 / 2 + 0.2 * (2 / 3 - 1 / 2) + 0.1 * (1 - 2 / 3)
    of_class_1 = 0.4 * 1 / 2 + 0.2 * (1 - 1 / 2)
    np.testing.assert_allclose(total, (of_class_0 + of_class_1) / 2, rtol=1e-12)


@pytest.mark.parametrize("width", [1, 3])
def test_pixels_near_a_boundary_have_another_class_in_the_square_around_them(width):
    labels = np.kron(np.random.default_rng(2).integers(0, 3, (2, 3, 4)), np.ones((1, 5, 5), int)).astype(np.uint8)
    labels[:, 4:6, 3:9] = 255
    size = (1, 2 * width + 1, 2 * width + 1)
    low = scipy.ndimage.minimum_filter(np.where(labels == 255, 1000, labels.astype(int)), size, mode="nearest")
    high = scipy.ndimage.maximum_filter(np.where(labels == 255, -1, labels.astype(int)), size, mode="nearest")
    expected = (low != high) & (labels != 255)
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(near_boundary(jnp.asarray(labels), width), expected)


def test_the_loss_of_boundaries_is_the_cross_entropy_there(float64):
    logits, labels = batch(dtype=np.float64)
    halves = jnp.where(jnp.arange(6).reshape(1, 1, 6) < 3, 1, 3).astype(jnp.uint8)
    labels = jnp.where(labels == 255, labels, halves)
    near = near_boundary(labels, 1)
    options = {"class_weights": WEIGHTS, "label_smoothing": 0.1}
    expected = softmax_cross_entropy(logits, labels, where=near, **options)
    np.testing.assert_allclose(boundary_cross_entropy(logits, labels, width=1, **options), expected, rtol=1e-12)
    assert 0 < float(expected[1]) < float(softmax_cross_entropy(logits, labels, **options)[1])
