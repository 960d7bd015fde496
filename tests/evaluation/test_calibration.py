"""Calibration counts against a loop over pixels."""

import json

import numpy as np
import pytest

from deeplab_jax.evaluation.calibration import CalibrationCounts


def test_counts_and_error_equal_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    confidence = rng.random(500).astype(np.float32)
    correct = rng.random(500) < 1 - confidence  # some bins are underconfident, others overconfident
    counts = CalibrationCounts.of_pixels(confidence, correct, 10)
    error = 0.0
    for bin_index in range(10):
        inside = (bin_index / 10 < confidence) & (confidence <= (bin_index + 1) / 10)
        assert counts.pixels[bin_index] == inside.sum()
        assert counts.correct[bin_index] == correct[inside].sum()
        mean = confidence[inside].astype(np.float64).mean()
        assert counts.scores()["confidence"][bin_index] == pytest.approx(mean, rel=1e-12)
        error += inside.mean() * abs(mean - correct[inside].mean())
    assert counts.error() == pytest.approx(error, rel=1e-12)  # float64 sums in another order
    assert counts.error() > 0.1


def test_edges_belong_to_the_bin_below():
    counts = CalibrationCounts.of_pixels(np.float32([0.25, 0.5, 1.0, 0.0]), np.array([True] * 4), 4)
    assert counts.pixels.tolist() == [2, 1, 0, 1]


def test_sums_of_images_equal_the_counts_of_all_pixels():
    rng = np.random.default_rng(1)
    confidence, correct = rng.random(300, np.float32), rng.random(300) < 0.5
    whole = CalibrationCounts.of_pixels(confidence, correct)
    parts = CalibrationCounts.zeros()
    for start in range(0, 300, 100):
        parts += CalibrationCounts.of_pixels(confidence[start : start + 100], correct[start : start + 100])
    restored = CalibrationCounts.from_json(json.loads(json.dumps(parts.to_json())))
    for counts in (parts, restored):
        np.testing.assert_array_equal(counts.pixels, whole.pixels)
        np.testing.assert_array_equal(counts.correct, whole.correct)
        assert counts.error() == pytest.approx(whole.error(), rel=1e-12)


def test_empty_bins_have_no_means():
    scores = CalibrationCounts.of_pixels(np.float32([0.9]), np.array([False]), 2).scores()
    assert scores == {
        "expected_calibration_error": pytest.approx(0.9, abs=1e-7),  # 0.9 in float32
        "pixels": [0, 1],
        "confidence": [None, pytest.approx(0.9, abs=1e-7)],
        "accuracy": [None, 0.0],
    }
    assert CalibrationCounts.zeros().error() is None
