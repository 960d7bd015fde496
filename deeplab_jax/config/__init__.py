"""Experiment configs: the schema, typed arguments, durations, and validation before any device work."""

from deeplab_jax.config.arguments import parse_arg, parse_leg
from deeplab_jax.config.durations import duration_steps
from deeplab_jax.config.loading import config_folders, find_config, load_config, read_config_file
from deeplab_jax.config.schema import PROTOCOLS, base_config
from deeplab_jax.config.serialization import differences, from_dict, to_dict
from deeplab_jax.config.validation import check_scales, eval_batch_size, validate

__all__ = [
    "PROTOCOLS",
    "base_config",
    "check_scales",
    "config_folders",
    "differences",
    "duration_steps",
    "eval_batch_size",
    "find_config",
    "from_dict",
    "load_config",
    "parse_arg",
    "parse_leg",
    "read_config_file",
    "to_dict",
    "validate",
]
