"""Validation of a config without data and devices."""

import pytest
from ml_collections import ConfigDict, config_dict

from deeplab_jax.config import base_config, eval_batch_size, load_config, validate
from deeplab_jax.errors import UserError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.backbone", None, "^model.backbone is not set"),
        ("data.name", None, "^data.name is not set"),
        ("data.batch_size", None, "^data.batch_size is not set"),
        ("data.image_size", None, "^data.image_size is not set"),
        ("optimizer.learning_rate", None, "^optimizer.learning_rate is not set"),
        ("mesh.fsdp_min_size", 0, "^mesh.fsdp_min_size=0 must be at least 1"),
        ("data.image_size", (96,), "^data.image_size=.* must be .height, width."),
        ("data.image_size", (96, 7), "^data.image_size=.* at least the output stride 8"),
        ("eval.image_size", (4, 96), "^eval.image_size=.* at least the output stride 8"),
        ("data.resize", "sqeeze", "^data.resize='sqeeze' does not exist; did you mean squeeze?"),
        ("data.random_flip", "horizontl", "^data.random_flip=.*did you mean horizontal?"),
        ("train.compute_dtype", "float16", "^train.compute_dtype='float16' does not exist; did you mean bfloat16?"),
        ("eval.protocol", "hole", "^eval.protocol='hole' does not exist; did you mean whole?"),
        ("eval.ignored_pixels", "exclud", "^eval.ignored_pixels='exclud' does not exist; did you mean exclude?"),
        ("eval.scales", (), "^eval.scales=.* must be factors above 0, for example"),
        ("eval.scales", (1.0, 0.0), "^eval.scales=.1.0, 0.0. must be factors above 0, for example"),
        ("eval.scales", ("1",), "^eval.scales=.* must be factors above 0, for example"),
        ("checkpoint.keep", 0, "^checkpoint.keep=0 must be at least 1"),
        ("log.every_steps", 0, "^log.every_steps=0 must be at least 1"),
        ("train.duration", "10%", "^train.duration='10%' cannot be a percentage; use steps, epochs or examples"),
        ("optimizer.warmup", "5 epoch", "^optimizer.warmup='5 epoch' has an unknown unit; did you mean epochs?"),
        ("eval.every", "5", "^eval.every='5' has no unit; write one of '5 steps', '5 epochs', '5 examples', '5%'"),
        ("checkpoint.every", "-1 steps", "^checkpoint.every='-1 steps' must be"),
        ("optimizer.name", "sdg", "^optimizer.name='sdg' does not exist; did you mean sgd?"),
        ("model.output_stride", 4, "^model.output_stride=4 does not exist; choose from 8, 16, 32"),
        ("data.unreadable", "skp", "^data.unreadable='skp' does not exist; did you mean skip?"),
        ("train.nonfinite", "stopp", "^train.nonfinite='stopp' does not exist; did you mean stop?"),
        ("train.ema_decay", 1.0, "^train.ema_decay=1.0 must be between 0 and 1, for example 0.999"),
        ("distributed.heartbeat_seconds", 0, "^distributed.heartbeat_seconds=0 must be at least 1"),
        ("log.profile_steps", -1, "^log.profile_steps=-1 must be at least 0"),
    ],
)
def test_validation_names_the_field(field, value, message):
    config = load_config("quickstart")
    group, name = field.split(".")
    if value is None:
        config[group] = ConfigDict({**config[group], name: config_dict.placeholder(str)})
    else:
        config[group][name] = value
    with pytest.raises(UserError, match=message) as caught:
        validate(config)
    assert "\n" not in str(caught.value)


def test_fields_that_only_training_needs_may_be_unset_otherwise():
    config = base_config()
    config.update_from_flattened_dict(
        {"model.backbone": "resnet50_v1", "data.name": "sbd", "data.batch_size": 1, "data.image_size": (64, 64)}
    )
    validate(config, training=False)
    with pytest.raises(UserError, match="^optimizer.learning_rate is not set"):
        validate(config)


@pytest.mark.parametrize(
    ("resize", "scales"),
    [
        ("scale_crop", (2, 0.5)),
        ("scale_crop", (0.0, 1)),
        ("scale_crop", (0.5, 1.0, 2.0)),
        ("resized_crop", (0.9, 0.5)),
        ("resized_crop", (0.5, 1.5)),
    ],
)
def test_scale_ranges_must_increase(resize, scales):
    config = load_config("quickstart")
    config.data.scale_range = scales
    validate(config)  # not used by squeeze
    config.data.resize = resize
    with pytest.raises(UserError, match="^data.scale_range="):
        validate(config)


def test_the_evaluation_batch_defaults_to_the_training_batch():
    config = base_config()
    config.data.batch_size = 6
    assert eval_batch_size(config) == 6
    config.eval.batch_size = 3
    assert eval_batch_size(config) == 3
