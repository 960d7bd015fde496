"""Class weights by rule against their formulas."""

import numpy as np
import pytest

from deeplab_jax.losses.class_weights import CLASS_WEIGHT_RULES, effective_number, inverse_frequency, median_frequency

# Pixels of four classes in three images of 100 labeled pixels; the last class has none.
PIXELS = np.array([[90, 10, 0, 0], [60, 0, 40, 0], [100, 0, 0, 0]])


def test_inverse_frequency_gives_every_class_the_same_weight_in_total():
    weights = inverse_frequency(PIXELS)
    np.testing.assert_allclose(weights, [300 / (3 * 250), 300 / (3 * 10), 300 / (3 * 40), 0])
    assert (weights * PIXELS.sum(axis=0)).sum() == pytest.approx(PIXELS.sum())


def test_median_frequency_is_among_images_that_contain_the_class():
    # Frequencies: 250 of 300, 10 of 100, 40 of 100; their median is .4.
    np.testing.assert_allclose(median_frequency(PIXELS), [0.4 / (250 / 300), 4.0, 1.0, 0])


def test_the_effective_number_of_images_saturates():
    many = np.repeat([[1, 0], [1, 1]], [99_000, 1000], axis=0)
    numbers = (1 - 0.999 ** np.array([100_000, 1000])) / (1 - 0.999)
    np.testing.assert_allclose(effective_number(many), 2 / numbers / (1 / numbers).sum())
    assert effective_number(PIXELS)[3] == 0
    assert effective_number(PIXELS)[:3].mean() == pytest.approx(1)


@pytest.mark.parametrize("rule", CLASS_WEIGHT_RULES.values())
def test_labels_without_a_pixel_give_no_weight(rule):
    np.testing.assert_array_equal(rule(np.zeros((2, 3), int)), 0)
