"""Durations in steps, epochs, examples or percent."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from deeplab_jax.errors import UserError

_DURATION_UNITS = ("steps", "epochs", "examples", "percent")


def duration_steps(
    group: ConfigDict | Mapping, prefix: str = "", *, batch_size: int, num_examples: int, total_steps: int | None = None
) -> int | None:
    """A duration in steps, from whichever of `<prefix>steps|epochs|examples|percent` the config sets.

    Epochs and examples are rounded to whole steps, at least one; percent is of `total_steps`.

    Args:
      group: of a config, or any mapping.
      prefix: of the fields' names, such as `every_`.
      batch_size: examples a step.
      num_examples: of the split, an epoch.
      total_steps: of the training; needed for percent.

    Returns:
      The steps, or None if none of the four is set.

    Raises:
      UserError: more than one is set, or one is negative.
    """
    given = {unit: group[key] for unit in _DURATION_UNITS if group.get(key := prefix + unit) is not None}
    if not given:
        return None
    names = [prefix + unit for unit in given]
    if len(given) > 1:
        raise UserError(f"only one of {' and '.join(names)} can be set")
    ((unit, value),) = given.items()
    if value < 0:
        raise UserError(f"{names[0]}={value} is negative")
    if unit == "steps":
        return int(value)
    if unit == "percent":
        return round(total_steps * value / 100)
    examples = value * num_examples if unit == "epochs" else value
    return max(1, round(examples / batch_size)) if value else 0
