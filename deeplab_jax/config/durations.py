"""Durations such as "30000 steps", "50 epochs", "160000 examples" or "10%"."""

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence

from deeplab_jax.errors import UserError

#: The unit of a share of the training, which the length of the training itself cannot have.
PERCENT = "%"
_WHOLE_UNITS = ("steps", "examples")
_UNITS = ("steps", "epochs", "examples", PERCENT)
_MOST_STEPS = 2**31 - 1  # steps are counted in int32
_NUMBER_AND_UNIT = re.compile(r"\s*(-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(\S*)\s*", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Duration:
    """A parsed duration.

    Attributes:
      value: a number of `unit`; a whole number of steps or examples.
      unit: `steps`, `epochs`, `examples` or `%`.
    """

    value: int | float
    unit: str

    def __str__(self) -> str:
        number = str(int(self.value)) if self.value == int(self.value) else repr(self.value)
        return number + self.unit if self.unit == PERCENT else f"{number} {self.unit}"


def parse_duration(text: str, *, field: str, allow_percent: bool = True) -> Duration:
    """Parses a number and its unit; the space between them is optional.

    Args:
      text: such as "30000 steps", "0.5 epochs" or "10%". The unit is plural, except in "1 step".
      field: config field that error messages name.
      allow_percent: whether a percentage of the training is a valid duration.

    Raises:
      UserError: the text is not a duration, or is negative or infinite.
    """
    units = _UNITS if allow_percent else tuple(unit for unit in _UNITS if unit != PERCENT)
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        raise UserError(f"{field}={text!r} is not a duration; write a number and a unit, for example '500 steps'")
    value, unit = float(match[1]), match[2]
    if value == 1 and f"{unit}s" in units:
        unit += "s"
    if not unit:
        choices = ", ".join(f"'{match[1]}{'' if unit == PERCENT else ' '}{unit}'" for unit in units)
        raise UserError(f"{field}={text!r} has no unit; write one of {choices}")
    if unit == PERCENT and not allow_percent:
        raise UserError(f"{field}={text!r} cannot be a percentage; use {', '.join(units[:-1])} or {units[-1]}")
    if unit not in units:
        raise UserError(f"{field}={text!r} has an unknown unit{_suggest_unit(match[1], unit, units)}")
    if value < 0 or not math.isfinite(value):
        raise UserError(f"{field}={text!r} must be a finite number of at least 0")
    if unit in _WHOLE_UNITS and value != int(value):
        raise UserError(f"{field}={text!r} must be a whole number of {unit}")
    return Duration(value, unit)


def duration_steps(
    text: str | None, *, field: str, batch_size: int, num_examples: int, total_steps: int | None = None
) -> int | None:
    """Converts a duration to a number of train steps.

    Epochs and examples are rounded to the nearest whole number of steps, at least one unless the duration is zero.
    A percentage is rounded to the nearest whole number of steps.

    Args:
      text: value of the config field, or None if it is unset.
      field: config field that error messages name, such as `train.duration`.
      batch_size: examples per step.
      num_examples: examples per epoch.
      total_steps: length of the training. None does not allow a percentage.

    Returns:
      The number of steps, or None if the field is unset.

    Raises:
      UserError: the text is not a valid duration.
    """
    if text is None:
        return None
    duration = parse_duration(text, field=field, allow_percent=total_steps is not None)
    if duration.unit == "steps":
        steps = int(duration.value)
    elif duration.unit == PERCENT:
        steps = round(total_steps * duration.value / 100)
    else:
        examples = duration.value * num_examples if duration.unit == "epochs" else duration.value
        steps = max(1, round(examples / batch_size)) if duration.value else 0
    if steps > _MOST_STEPS:
        raise UserError(f"{field}={text!r} is {steps:.4g} steps; use at most {_MOST_STEPS}")
    return steps


def _suggest_unit(number: str, unit: str, units: Sequence[str]) -> str:
    """Ends a message about an unknown unit: the units that it may abbreviate, or misspell."""
    lower = unit.lower()
    meant = [PERCENT] if "percent".startswith(lower) and PERCENT in units else []
    meant += [known for known in units if known.startswith(lower)]
    meant = meant or difflib.get_close_matches(lower, units, n=1)
    if not meant:
        return f"; choose from {', '.join(units)}"
    return f"; did you mean {' or '.join(repr(str(Duration(float(number), known))) for known in meant)}?"
