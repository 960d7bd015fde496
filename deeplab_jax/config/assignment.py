"""Sets the fields of a config by their paths."""

from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config.suggestions import suggest_field
from deeplab_jax.errors import UserError


def set_field(config: ConfigDict, path: str, value: Any) -> None:
    """Sets a field of a config, such as `model.backbone`.

    Args:
      config: a config.
      path: group and name of the field.
      value: its value. A list becomes a tuple.

    Raises:
      UserError: the field does not exist, is a group, or has another type.
    """
    *groups, name = path.split(".")
    group = config
    for key in groups:
        group = group[key] if isinstance(group, ConfigDict) and key in group else None
    if not isinstance(group, ConfigDict) or name not in group:
        raise UserError(f"config field {path} does not exist{suggest_field(path)}")
    if isinstance(group[name], ConfigDict):
        raise UserError(
            f"config field {path} is a group of fields; set one of {', '.join(f'{path}.{key}' for key in group[name])}"
        )
    try:
        group[name] = tuple(value) if isinstance(value, list) else value
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}={value!r}: {' '.join(str(error).split())}") from None
