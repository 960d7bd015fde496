"""The config fields of the documentation, read from the schema."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class DocumentedField:
    """A row of a table of config fields.

    Attributes:
      path: such as `train.seed`.
      type: name of the type of its values.
      default: None if the field is unset.
      meaning: Markdown: the help text, and the legal values if the schema lists them, each on a line of its own if the
        schema explains them; or the range of a number.
    """

    path: str
    type: str
    default: Any
    meaning: str


def read_fields() -> list[DocumentedField]:
    """Lists every field in the order of the schema."""
    config = config_lib.base_config()
    return [
        DocumentedField(path, _type_name(config, path), field.default, _meaning(field))
        for path, field in config_lib.iterate_fields()
    ]


def _type_name(config: ConfigDict, path: str) -> str:
    *groups, field = path.split(".")
    for group in groups:
        config = config[group]
    return config.get_type(field).__name__


def _meaning(field: config_lib.Field) -> str:
    if isinstance(field.choices, Mapping):
        return "\n".join([field.help, *(f"`{value}`: {meaning}" for value, meaning in field.choices.items())])
    if field.choices:
        return f"{field.help}: {', '.join(f'`{value}`' for value in field.choices)}"
    if field.range is not None:
        return f"{field.help}; {field.range}"
    return field.help
