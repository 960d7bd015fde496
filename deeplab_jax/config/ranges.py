"""Ranges of legal numbers."""

import dataclasses
import math
import numbers
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers between two bounds. NaN and infinities are never among them.

    Attributes:
      minimum: smallest number.
      above: bound below all numbers, instead of `minimum`.
      maximum: largest number.
      below: bound above all numbers, instead of `maximum`.
      integer: only integers.
    """

    minimum: int | float | None = None
    above: int | float | None = None
    maximum: int | float | None = None
    below: int | float | None = None
    integer: bool = False

    def __contains__(self, value: Any) -> bool:
        kind = numbers.Integral if self.integer else numbers.Real
        return (
            isinstance(value, kind)
            and not isinstance(value, bool)
            and (isinstance(value, numbers.Integral) or math.isfinite(value))
            and (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        kind = "an integer" if self.integer else "a number"
        if self.minimum is not None and self.maximum is not None:
            return f"{kind} between {self.minimum} and {self.maximum}"
        bounds = (
            ("of at least", self.minimum), ("above", self.above), ("at most", self.maximum), ("below", self.below),
        )  # fmt: skip
        given = [f"{word} {bound}" for word, bound in bounds if bound is not None]
        return f"{kind} {' and '.join(given)}"


_LARGEST_INT32 = 2**31 - 1

FINITE = Range(minimum=-1e30, maximum=1e30)
AT_LEAST_ZERO = Range(minimum=0)
AT_LEAST_ONE = Range(minimum=1, maximum=1000)
ABOVE_ZERO = Range(above=0)
DIVISOR = Range(above=0, maximum=1e30)
FRACTION = Range(minimum=0, maximum=1)
SHARE = Range(above=0, maximum=1)
BELOW_ONE = Range(minimum=0, below=1)
COUNT = Range(minimum=1, maximum=_LARGEST_INT32, integer=True)
COUNT_OR_ZERO = Range(minimum=0, maximum=_LARGEST_INT32, integer=True)
# Sizes for which a network or an image can exist. They keep a damaged file from asking for all memory.
CHANNELS = Range(minimum=1, maximum=2**16, integer=True)
SIDE = Range(minimum=1, maximum=2**16 - 1, integer=True)
SIDE_OR_ZERO = Range(minimum=0, maximum=2**16 - 1, integer=True)
RATE = Range(minimum=1, maximum=2**12, integer=True)
WIDTH = Range(above=0, maximum=16)
SCALE = Range(above=0, maximum=16)
ANGLE = Range(minimum=0, maximum=180)
SIGMA = Range(minimum=0, maximum=100)
WORKERS = Range(minimum=0, maximum=2**10, integer=True)
DEVICES = Range(minimum=-1, maximum=2**20, integer=True)
SEED = Range(minimum=0, maximum=2**32 - 1, integer=True)  # JAX's keys take the lower 32 bits only
