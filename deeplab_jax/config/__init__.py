"""Experiment configs: the schema, arguments of config files, durations, validation, and JSON."""

from deeplab_jax.config.arguments import parse_arg, parse_stage
from deeplab_jax.config.describe import ConfigDescription, describe_config, list_configs
from deeplab_jax.config.durations import Duration, duration_steps, parse_duration
from deeplab_jax.config.loading import config_folders, find_config, load_config, read_config_file
from deeplab_jax.config.loss_terms import LOSS_TERMS, LossTerm, parse_loss_terms
from deeplab_jax.config.migration import VERSION, migrate_config, migrate_model
from deeplab_jax.config.ranges import Range
from deeplab_jax.config.schema import (
    DURATION_FIELDS,
    FIELDS,
    PROTOCOLS,
    Field,
    base_config,
    get_field,
    iterate_fields,
    result_fields,
)
from deeplab_jax.config.serialization import differences, from_dict, from_saved, read_saved, to_dict, to_saved
from deeplab_jax.config.suggestions import find_field, suggest_field
from deeplab_jax.config.validation import (
    check_fields,
    check_scales,
    check_sizes,
    check_value_range,
    eval_batch_size,
    validate,
)

__all__ = [
    "DURATION_FIELDS",
    "FIELDS",
    "LOSS_TERMS",
    "PROTOCOLS",
    "VERSION",
    "ConfigDescription",
    "Duration",
    "Field",
    "LossTerm",
    "Range",
    "base_config",
    "check_fields",
    "check_scales",
    "check_sizes",
    "check_value_range",
    "config_folders",
    "describe_config",
    "differences",
    "duration_steps",
    "eval_batch_size",
    "find_config",
    "find_field",
    "from_dict",
    "from_saved",
    "get_field",
    "iterate_fields",
    "list_configs",
    "load_config",
    "migrate_config",
    "migrate_model",
    "parse_arg",
    "parse_duration",
    "parse_loss_terms",
    "parse_stage",
    "read_config_file",
    "read_saved",
    "result_fields",
    "suggest_field",
    "to_dict",
    "to_saved",
    "validate",
]
