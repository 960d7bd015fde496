"""Checks a config before any data is read and any device is used."""

import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config.durations import parse_duration
from deeplab_jax.config.schema import DURATION_FIELDS, FIELDS, check_choices
from deeplab_jax.errors import UserError

_REQUIRED = ("model.backbone", "data.name", "data.batch_size", "data.image_size")
_AT_LEAST_ONE = (
    "checkpoint.keep",
    "log.every_steps",
    "mesh.fsdp_min_size",
    "distributed.heartbeat_seconds",
    "distributed.connect_seconds",
)


def validate(config: ConfigDict, *, training: bool = True) -> None:
    """Checks everything that can be checked without data and devices.

    Args:
      config: a complete config.
      training: whether the fields that only training needs must be set.

    Raises:
      UserError: a value is missing or not legal. The message names the field and the fix.
    """
    for field in _REQUIRED + (("optimizer.learning_rate",) if training else ()):
        if _get(config, field) is None:
            raise UserError(f"{field} is not set; set it in the config file or with --config.{field}=...")
    for group in FIELDS:
        check_choices(group, config[group])
    for field in DURATION_FIELDS:
        if (text := _get(config, field)) is not None:
            parse_duration(text, field=field, allow_percent=field != "train.duration")
    for field in _AT_LEAST_ONE:
        if _get(config, field) < 1:
            raise UserError(f"{field}={_get(config, field)} must be at least 1")
    if config.log.profile_steps < 0:
        raise UserError(f"log.profile_steps={config.log.profile_steps} must be at least 0")
    _validate_sizes(config)
    _validate_augmentation(config.data)
    _validate_teacher(config.loss)
    check_scales("eval.scales", config.eval.scales)
    decay = config.train.ema_decay
    if decay is not None and not 0 < decay < 1:
        raise UserError(f"train.ema_decay={decay} must be between 0 and 1, for example 0.999")


def check_scales(name: str, scales: Sequence[Any]) -> None:
    """Checks scales of multi-scale prediction.

    Raises:
      UserError: there are none, or one is not a finite number above 0. The message begins with `name`.
    """
    if not scales or not all(isinstance(scale, (int, float)) and 0 < scale < math.inf for scale in scales):
        raise UserError(f"{name}={tuple(scales)} must be factors above 0, for example (0.75, 1.0, 1.25)")


def eval_batch_size(config: ConfigDict) -> int:
    """Returns the global batch size of evaluation."""
    return config.data.batch_size if config.eval.batch_size is None else config.eval.batch_size


def _get(config: ConfigDict, field: str) -> Any:
    group, name = field.split(".")
    return config[group][name]


def _validate_sizes(config: ConfigDict) -> None:
    for field in ("data.image_size", "eval.image_size"):
        size = _get(config, field)
        if size is not None and (len(size) != 2 or min(size) < config.model.output_stride):
            raise UserError(
                f"{field}={tuple(size)} must be (height, width), each at least the output stride "
                f"{config.model.output_stride}"
            )


def _validate_augmentation(data: ConfigDict) -> None:
    if data.resize != "squeeze":
        scales = tuple(data.scale_range)
        largest = 1 if data.resize == "resized_crop" else math.inf
        if len(scales) != 2 or not 0 < scales[0] <= scales[1] <= largest:
            raise UserError(
                f"data.scale_range={scales} must be two increasing factors above 0"
                + (", at most 1 for data.resize='resized_crop'" if largest == 1 else "")
            )
    if not 0 <= data.color_jitter < 1:
        raise UserError(f"data.color_jitter={data.color_jitter} must be at least 0 and below 1")
    for name in ("paste_share", "repeat_threshold"):
        if not 0 <= data[name] <= 1:
            raise UserError(f"data.{name}={data[name]} must be a fraction between 0 and 1")


def _validate_teacher(loss: ConfigDict) -> None:
    if loss.teacher is None:
        return
    if loss.name != "softmax_cross_entropy":
        raise UserError(f"loss.teacher needs loss.name='softmax_cross_entropy' (it is {loss.name!r})")
    if not 0 < loss.teacher_weight <= 1:
        raise UserError(f"loss.teacher_weight={loss.teacher_weight} must be above 0 and at most 1")
    check_scales("loss.teacher_scales", loss.teacher_scales)
