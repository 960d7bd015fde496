"""Class weights by rule, from the number of pixels of each class in each training image."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Integer

# The value that arXiv 1901.05555 uses on its large data sets.
_BETA = 0.999


def inverse_frequency(pixels: Integer[np.ndarray, "images classes"]) -> Float[np.ndarray, "classes"]:
    """Weights every class as if it had the same number of pixels: all pixels / (classes * pixels of the class)."""
    totals = pixels.sum(axis=0)
    return _divide(totals.sum() / max(np.count_nonzero(totals), 1), totals)


def median_frequency(pixels: Integer[np.ndarray, "images classes"]) -> Float[np.ndarray, "classes"]:
    """Median frequency balancing (arXiv 1411.4734, section 4.3.2): the median frequency / that of the class.

    The frequency of a class is its share of the labeled pixels of the images that contain it.
    """
    frequency = _divide(pixels.sum(axis=0), (pixels.sum(axis=1, keepdims=True) * (pixels > 0)).sum(axis=0))
    return _divide(np.median(frequency[frequency > 0]) if frequency.any() else 0.0, frequency)


def effective_number(pixels: Integer[np.ndarray, "images classes"]) -> Float[np.ndarray, "classes"]:
    """Weights by the effective number of samples (arXiv 1901.05555, equation 4, beta 0.999); their mean is 1.

    The samples of a class are the images that contain it: pixels of an image resemble each other, and the effective
    number of millions of pixels is the same for every class.
    """
    images = (pixels > 0).sum(axis=0)
    weights = _divide(1 - _BETA, 1 - _BETA**images)
    return _divide(weights * np.count_nonzero(weights), weights.sum())


#: The function of each `loss.class_weight_rule` that counts. Classes without pixels have the weight 0.
CLASS_WEIGHT_RULES: Mapping[str, Callable] = {
    "inverse_frequency": inverse_frequency,
    "median_frequency": median_frequency,
    "effective_number": effective_number,
}


def _divide(numerator, denominator):
    """Divides, with 0 where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.zeros(denominator.shape), where=denominator > 0)
