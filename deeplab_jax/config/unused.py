"""Fields that a config sets although they have no effect with the values of its other fields."""

from ml_collections import ConfigDict

from deeplab_jax.config.schema import get_field, iterate_fields


def unused_fields(config: ConfigDict) -> list[str]:
    """Lists the fields of a whole config that differ from their default without an effect, and what they need.

    Such a value is not an error: a config or a sweep may set it once for several schedules or protocols.

    Returns:
      For each field, for example `optimizer.milestones (needs optimizer.schedule=step)`.
    """
    return [
        f"{path} (needs {field.need})"
        for path, field in iterate_fields()
        if field.need is not None
        and get_field(config, path) != field.default
        and not field.need.is_met(get_field(config, field.need.path))
    ]
