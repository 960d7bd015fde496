"""Checks of a config before any data is read or any device is used."""

import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config.schema import PROTOCOLS
from deeplab_jax.errors import UserError, suggest


def validate(config: ConfigDict, *, training: bool = True) -> None:
    """Checks what can be known before any data is read and any device is used.

    Args:
      config: a whole config.
      training: whether what only training needs has to be set.

    Raises:
      UserError: naming the field and the fix.
    """
    _require(config, "model.backbone", "data.name", "data.batch_size", "data.image_size")
    if training:
        _require(config, "optimizer.learning_rate")
    for field in ("data.image_size", "eval.image_size"):
        size = config[field.split(".")[0]].image_size
        if size is not None and (len(size) != 2 or min(size) < config.model.output_stride):
            raise UserError(
                f"{field}={tuple(size)} must be (height, width), each at least the output stride "
                f"{config.model.output_stride}"
            )
    if config.data.resize != "squeeze":
        scales = tuple(config.data.scale_range)
        most = 1 if config.data.resize == "resized_crop" else math.inf
        if len(scales) != 2 or not 0 < scales[0] <= scales[1] <= most:
            raise UserError(
                f"data.scale_range={scales} must be two rising factors above 0"
                + (", at most 1 for data.resize='resized_crop'" if most == 1 else "")
            )
    for field, known in {
        "data.resize": ("squeeze", "scale_crop", "resized_crop"),
        "data.random_flip": ("none", "horizontal", "horizontal_and_vertical"),
        "data.unreadable": ("raise", "skip"),
        "train.nonfinite": ("stop", "skip"),
        "train.compute_dtype": ("float32", "bfloat16"),
        "train.remat": ("none", "activations", "units"),
        "eval.protocol": PROTOCOLS,
        "eval.void": ("ignore", "background"),
    }.items():
        group, name = field.split(".")
        if config[group][name] not in known:
            raise UserError(f"{field}={config[group][name]!r} does not exist{suggest(str(config[group][name]), known)}")
    check_scales("eval.scales", config.eval.scales)
    if not 0 <= config.data.color_jitter < 1:
        raise UserError(f"data.color_jitter={config.data.color_jitter} must be at least 0 and below 1")
    if not 0 <= config.data.paste_share <= 1:
        raise UserError(f"data.paste_share={config.data.paste_share} must be a share, from 0 to 1")
    if not 0 <= config.data.repeat_threshold <= 1:
        raise UserError(f"data.repeat_threshold={config.data.repeat_threshold} must be a share, from 0 to 1")
    if config.loss.teacher is not None:
        if config.loss.name != "softmax_cross_entropy":
            raise UserError(f"loss.teacher needs loss.name='softmax_cross_entropy' (is {config.loss.name!r})")
        if not 0 < config.loss.teacher_weight <= 1:
            raise UserError(f"loss.teacher_weight={config.loss.teacher_weight} must be above 0 and at most 1")
        check_scales("loss.teacher_scales", config.loss.teacher_scales)
    decay = config.train.ema_decay
    if decay is not None and not 0 < decay < 1:
        raise UserError(f"train.ema_decay={decay} must lie between 0 and 1, for instance 0.999")
    for field in ("checkpoint.keep", "log.every_steps", "mesh.fsdp_min_size", "distributed.heartbeat_seconds"):
        group, name = field.split(".")
        if config[group][name] < 1:
            raise UserError(f"{field}={config[group][name]} must be at least 1")
    if config.log.profile_steps < 0:
        raise UserError(f"log.profile_steps={config.log.profile_steps} must be at least 0")


def check_scales(name: str, scales: Sequence[Any]) -> None:
    """Raises a UserError unless these are factors to see images at."""
    if not scales or not all(isinstance(scale, (int, float)) and 0 < scale < math.inf for scale in scales):
        raise UserError(f"{name}={tuple(scales)} must be factors above 0, for instance (0.75, 1.0, 1.25)")


def eval_batch_size(config: ConfigDict) -> int:
    """Images an evaluation step, over all devices."""
    return config.data.batch_size if config.eval.batch_size is None else config.eval.batch_size


def _require(config: ConfigDict, *fields: str) -> None:
    for field in fields:
        group, name = field.split(".")
        if config[group][name] is None:
            raise UserError(f"{field} is not set; set it in the config file or with --config.{field}=...")
