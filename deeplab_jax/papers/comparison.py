"""Measured beside published scores."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from deeplab_jax.papers.rows import Row


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One score of a row, in percent.

    Attributes:
      metric: its name, one of `METRICS`.
      measured: what an evaluation found; None if no pixel was counted.
      published: what the row publishes; None if it publishes no such score.
      difference: measured minus published, in percentage points; None if either is missing.
    """

    metric: str
    measured: float | None
    published: float | None

    @property
    def difference(self) -> float | None:
        """Measured minus published, in percentage points; None if either is missing."""
        return None if None in (self.measured, self.published) else self.measured - self.published


def compare(row: Row, scores: Mapping[str, Any]) -> list[Comparison]:
    """Compares the scores of an evaluation with those of a row.

    Args:
      row: the row.
      scores: the result of an evaluation, see `deeplab_jax.evaluation.evaluator.evaluate`. Its scores are fractions.

    Returns:
      The mean IoU, and every other score that the row publishes.
    """
    names = dict.fromkeys(["mean_iou", *row.published])
    values = {name: scores.get(name) for name in names}
    return [
        Comparison(name, None if value is None else 100 * value, row.published.get(name))
        for name, value in values.items()
    ]
