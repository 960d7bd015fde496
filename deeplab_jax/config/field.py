"""A field of the config schema."""

import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import Any

from deeplab_jax.config import ranges


@dataclasses.dataclass(frozen=True)
class Need:
    """A value of another field, without which a field has no effect.

    Attributes:
      path: the other field, such as `optimizer.schedule`.
      values: values that it needs; empty for any but None, 0, False and ().
    """

    path: str
    values: Container[Any] = ()

    def is_met(self, value: Any) -> bool:
        """Whether the other field has a value that it needs."""
        return value in self.values if self.values else bool(value)

    def __str__(self) -> str:
        return f"{self.path}={' or '.join(map(str, self.values))}" if self.values else self.path


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the schema.

    Attributes:
      default: its value until an experiment sets it. None leaves it unset, and then `value_type` is needed.
      help: one sentence for the documentation.
      choices: the legal values, or a mapping from each legal value to its meaning. Empty if they are not enumerated
        here: numbers, and names that a registry holds.
      value_type: the type of an unset field's value.
      range: the legal numbers, for a number and for each number of a tuple. None if other values are not numbers or
        are enumerated.
      need: the field has no effect without it; None if it always has one.
    """

    default: Any
    help: str
    choices: Sequence[Any] | Mapping[Any, str] = ()
    value_type: type | None = None
    range: ranges.Range | None = None
    need: Need | None = None
