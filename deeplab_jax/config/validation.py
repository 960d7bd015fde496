"""Checks a config before any data is read and any device is used."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config import ranges
from deeplab_jax.config.durations import parse_duration
from deeplab_jax.config.loss_terms import parse_loss_terms
from deeplab_jax.config.schema import DURATION_FIELDS, FIELDS, Field, get_field
from deeplab_jax.config.stages import stage_configs
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.files import open_path

_REQUIRED = ("model.backbone", "data.name", "data.batch_size", "data.image_size")
_ONLY_FOR_TRAINING = ("unlabeled", "optimizer", "checkpoint", "log", "train.seed")  # groups and fields


def validate(config: ConfigDict, *, training: bool = True) -> None:
    """Checks everything that can be checked without data and devices.

    Args:
      config: a complete config.
      training: whether to check the fields that only training uses.

    Raises:
      UserError: a value is missing or not legal. The message names the field and the fix, and the stage if there are
        stages.
    """
    if training and config.stages:
        for name, stage in stage_configs(config).items():
            try:
                validate(stage)
            except UserError as error:
                raise UserError(f"stage {name}: {error}") from None
        return
    for field in _REQUIRED + (("optimizer.learning_rate",) if training else ()):
        if get_field(config, field) is None:
            raise UserError(f"{field} is not set; set it in the config file or with --config.{field}=...")
    for group in FIELDS:
        if training:
            check_fields(group, config[group])
        elif group not in _ONLY_FOR_TRAINING:
            used = {name: value for name, value in config[group].items() if f"{group}.{name}" not in _ONLY_FOR_TRAINING}
            check_fields(group, used)
    if training and config.train.patience is not None and config.eval.every is None:
        raise UserError("train.patience counts evaluations; set eval.every too, for example to '1 epochs'")
    for field in DURATION_FIELDS:
        if training and (text := get_field(config, field)) is not None:
            parse_duration(text, field=field, allow_percent=field != "train.duration")
    if config.data.data_dir is not None:
        open_path(config.data.data_dir)
    check_sizes(config)
    check_value_range(config.model.value_range)
    _validate_scaling(config.data)
    check_scales("eval.scales", config.eval.scales)
    _validate_loss(config.loss)
    if training and config.unlabeled.split is not None:
        _validate_unlabeled(config)
    if training and config.train.precise_norm_batches and config.model.freeze_norm_statistics:
        raise UserError(
            "train.precise_norm_batches computes the statistics that model.freeze_norm_statistics keeps; set only one"
        )
    if training and config.train.precise_norm_batches and config.train.patience:
        raise UserError("train.precise_norm_batches needs a training that ends as planned; set train.patience=None")


def check_fields(group: str, values: ConfigDict | Mapping[str, Any]) -> None:
    """Checks the fields of one group that have enumerated legal values or a range.

    Args:
      group: name of the group, such as `model`.
      values: values of its fields. Fields that are missing or unset are not checked.

    Raises:
      UserError: a value is not legal; the message names the field, and the nearest legal value or the range.
    """
    _check_fields(FIELDS[group], values, f"{group}.")


def check_sizes(config: ConfigDict) -> None:
    """Checks the sizes of images in training and evaluation.

    Raises:
      UserError: one is not a height and a width, or is smaller than the output stride.
    """
    stride = config.model.output_stride
    for field in ("data.image_size", "eval.image_size"):
        size = get_field(config, field)
        if size is None:
            continue
        if len(size) != 2 or not all(extent in ranges.SIDE and extent >= stride for extent in size):
            raise UserError(
                f"{field}={tuple(size)} must be (height, width), each at least the output stride {stride} and at most "
                f"{ranges.SIDE.maximum}"
            )


def check_value_range(value_range: Sequence[int | float]) -> None:
    """Checks `model.value_range`.

    Raises:
      UserError: it is not two increasing numbers.
    """
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise UserError(f"model.value_range={tuple(value_range)} must be two increasing numbers")


def check_scales(name: str, scales: Sequence[Any]) -> None:
    """Checks scales of multi-scale prediction.

    Raises:
      UserError: there are none, or one is not legal. The message begins with `name`.
    """
    if not scales or not all(scale in ranges.SCALE for scale in scales):
        raise UserError(
            f"{name}={tuple(scales)} must be factors above 0 and at most {ranges.SCALE.maximum}, for example "
            "(0.75, 1.0, 1.25)"
        )


def eval_batch_size(config: ConfigDict) -> int:
    """Returns the global batch size of evaluation."""
    return config.data.batch_size if config.eval.batch_size is None else config.eval.batch_size


def unlabeled_batch_size(config: ConfigDict) -> int:
    """Returns the global number of unlabeled images per step."""
    return config.data.batch_size if config.unlabeled.batch_size is None else config.unlabeled.batch_size


def _validate_unlabeled(config: ConfigDict) -> None:
    unlabeled = config.unlabeled
    shared = sorted(set(unlabeled.split.split("+")) & set(config.data.eval_split.split("+")))
    if shared:
        raise UserError(
            f"unlabeled.split and data.eval_split share the split {', '.join(shared)}; a score on "
            "training images means little"
        )
    if unlabeled.teacher == "average" and config.train.ema_decay is None:
        raise UserError(
            "unlabeled.teacher='average' predicts with the averaged network; set train.ema_decay too, for example to "
            "0.99"
        )


def _validate_loss(loss: ConfigDict) -> None:
    terms = parse_loss_terms(loss.terms)
    if loss.class_weights and loss.class_weight_rule != "given":
        raise UserError(
            f"loss.class_weights and loss.class_weight_rule={loss.class_weight_rule!r} are both set; set only one, for "
            "example with --config.loss.class_weights='()'"
        )
    if loss.teacher is not None:
        check_scales("loss.teacher_scales", loss.teacher_scales)
        if not any(term.name == "cross_entropy" for term in terms):
            raise UserError(f"loss.teacher needs the term cross_entropy in loss.terms (they are {loss.terms!r})")


def _validate_scaling(data: ConfigDict) -> None:
    if data.max_long_side and not data.short_side:
        raise UserError(f"data.max_long_side={data.max_long_side} needs data.short_side; set it, or max_long_side=0")
    if data.resize == "squeeze":  # does not use it
        return
    scales = tuple(data.scale_range)
    largest = 1 if data.resize == "resized_crop" else math.inf
    if len(scales) != 2 or not 0 < scales[0] <= scales[1] <= largest:
        raise UserError(
            f"data.scale_range={scales} must be two increasing factors above 0"
            + (", at most 1 for data.resize='resized_crop'" if largest == 1 else "")
        )


def _check_fields(fields: Mapping[str, Any], values: ConfigDict | Mapping[str, Any], prefix: str) -> None:
    for name, field in fields.items():
        value, path = values.get(name), prefix + name
        if value is None:
            continue
        if not isinstance(field, Field):
            _check_fields(field, value, f"{path}.")
        elif field.choices and _as_tuple(value) not in tuple(field.choices):  # values of JSON files may have no hash
            raise UserError(f"{path}={value!r} does not exist{suggest(str(value), field.choices)}")
        elif field.range is not None and isinstance(value, (tuple, list)):
            if not all(number in field.range for number in value):
                raise UserError(f"{path}={tuple(value)}: each value must be {field.range}")
        elif field.range is not None and value not in field.range:
            raise UserError(f"{path}={value!r} must be {field.range}")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
