"""A field of the config schema."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_jax.config import ranges


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
    """

    default: Any
    help: str
    choices: Sequence[Any] | Mapping[Any, str] = ()
    value_type: type | None = None
    range: ranges.Range | None = None
