"""Calibration: whether pixels that a network is sure of are right as often as its confidence says."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

#: Number of equal bins of confidence between 0 and 1 (Guo et al. 2017).
NUM_BINS = 15


@dataclasses.dataclass(frozen=True)
class CalibrationCounts:
    """Pixels by confidence, the largest probability of a pixel. Bin m of n is the confidences in (m / n, (m + 1) / n].

    Attributes:
      pixels: pixels in each bin.
      correct: pixels in each bin whose predicted class is the true one.
      confidence: sum of the confidences in each bin.
    """

    pixels: Int64[np.ndarray, "bins"]
    correct: Int64[np.ndarray, "bins"]
    confidence: Float64[np.ndarray, "bins"]

    @classmethod
    def zeros(cls, num_bins: int = NUM_BINS) -> "CalibrationCounts":
        """Returns counts of zero."""
        return cls(np.zeros(num_bins, np.int64), np.zeros(num_bins, np.int64), np.zeros(num_bins))

    @classmethod
    def of_pixels(
        cls, confidence: Float[np.ndarray, "pixels"], correct: Bool[np.ndarray, "pixels"], num_bins: int = NUM_BINS
    ) -> "CalibrationCounts":
        """Counts pixels, given the confidence of each and whether its predicted class is the true one."""
        confidence = confidence.astype(np.float64)  # it holds a float32 times an integer exactly
        bins = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
        return cls(
            np.bincount(bins, minlength=num_bins).astype(np.int64),
            np.bincount(bins[correct], minlength=num_bins).astype(np.int64),
            np.bincount(bins, confidence, minlength=num_bins),
        )

    def to_json(self) -> list[Any]:
        """Returns the counts as values that JSON can hold."""
        return [self.pixels.tolist(), self.correct.tolist(), self.confidence.tolist()]

    @classmethod
    def from_json(cls, values: list[Any]) -> "CalibrationCounts":
        """Creates counts from the values that `to_json` returned."""
        pixels, correct, confidence = values
        return cls(np.array(pixels, np.int64), np.array(correct, np.int64), np.array(confidence, np.float64))

    def __add__(self, other: "CalibrationCounts") -> "CalibrationCounts":
        return CalibrationCounts(
            self.pixels + other.pixels, self.correct + other.correct, self.confidence + other.confidence
        )

    def error(self) -> float | None:
        """Returns the expected calibration error (ECE); None without pixels.

        It is the difference between mean confidence and accuracy of each bin, averaged with the pixels as weights
        ([arXiv 1706.04599](https://arxiv.org/abs/1706.04599)).
        """
        total = int(self.pixels.sum())
        return float(np.abs(self.confidence - self.correct).sum() / total) if total else None

    def scores(self) -> dict[str, Any]:
        """Returns the reliability diagram and its error: per bin, `pixels`, mean `confidence` and `accuracy`.

        An empty bin has the confidence and accuracy None.
        """
        means = {
            name: [float(total / count) if count else None for total, count in zip(totals, self.pixels, strict=True)]
            for name, totals in (("confidence", self.confidence), ("accuracy", self.correct))
        }
        return {"expected_calibration_error": self.error(), "pixels": self.pixels.tolist(), **means}
