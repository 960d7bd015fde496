"""Validation of a config without data and devices."""

import math

import pytest
from ml_collections import ConfigDict, config_dict

from deeplab_jax.config import base_config, check_fields, eval_batch_size, load_config, validate
from deeplab_jax.errors import UserError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.backbone", None, "^model.backbone is not set"),
        ("data.name", None, "^data.name is not set"),
        ("data.batch_size", None, "^data.batch_size is not set"),
        ("data.image_size", None, "^data.image_size is not set"),
        ("optimizer.learning_rate", None, "^optimizer.learning_rate is not set"),
        ("mesh.fsdp_min_size", 0, "^mesh.fsdp_min_size=0 must be an integer between 1 and "),
        ("data.batch_size", 0, "^data.batch_size=0 must be an integer between 1 and "),
        ("data.num_examples", 0, "^data.num_examples=0 must be an integer between 1 and "),
        ("data.workers", -1, "^data.workers=-1 must be an integer between 0 and 1024"),
        ("train.seed", 2**63, "^train.seed=9223372036854775808 must be an integer between 0 and 4294967295"),
        ("train.seed", -1, "^train.seed=-1 must be an integer between 0 and 4294967295"),
        ("train.accumulate_steps", 0, "^train.accumulate_steps=0 must be an integer between 1 and "),
        ("optimizer.learning_rate", math.nan, "^optimizer.learning_rate=nan must be a number of at least 0"),
        ("optimizer.learning_rate", math.inf, "^optimizer.learning_rate=inf must be a number of at least 0"),
        ("optimizer.weight_decay", -1e-4, "^optimizer.weight_decay=-0.0001 must be a number of at least 0"),
        ("optimizer.momentum", 1.0, "^optimizer.momentum=1.0 must be a number of at least 0 and below 1"),
        ("model.atrous_rates", (6, 0), "^model.atrous_rates=.6, 0.: each value must be an integer between 1 and 4096"),
        ("data.data_dir", "hf://bucket/data", "^hf://bucket/data is an address"),
        ("data.image_size", (96,), "^data.image_size=.* must be .height, width."),
        ("data.image_size", (96, 7), "^data.image_size=.* at least the output stride 8"),
        ("eval.image_size", (4, 96), "^eval.image_size=.* at least the output stride 8"),
        ("data.resize", "sqeeze", "^data.resize='sqeeze' does not exist; did you mean squeeze?"),
        ("data.random_flip", "horizontl", "^data.random_flip=.*did you mean horizontal?"),
        ("train.compute_dtype", "float16", "^train.compute_dtype='float16' does not exist; did you mean bfloat16?"),
        ("eval.protocol", "hole", "^eval.protocol='hole' does not exist; did you mean whole?"),
        ("eval.ignored_pixels", "exclud", "^eval.ignored_pixels='exclud' does not exist; did you mean exclude?"),
        ("eval.scales", (), "^eval.scales=.* must be factors above 0 and at most 16, for example"),
        ("eval.scales", (1.0, 0.0), "^eval.scales=.1.0, 0.0.: each value must be a number above 0 and at most 16"),
        ("eval.scales", ("1",), "^eval.scales=.*: each value must be a number above 0"),
        ("checkpoint.keep", 0, "^checkpoint.keep=0 must be an integer between 1 and "),
        ("log.every_steps", 0, "^log.every_steps=0 must be an integer between 1 and "),
        ("train.duration", "10%", "^train.duration='10%' cannot be a percentage; use steps, epochs or examples"),
        ("optimizer.warmup", "5 epoch", "^optimizer.warmup='5 epoch' has an unknown unit; did you mean '5 epochs'?"),
        ("eval.every", "5", "^eval.every='5' has no unit; write one of '5 steps', '5 epochs', '5 examples', '5%'"),
        ("checkpoint.every", "-1 steps", "^checkpoint.every='-1 steps' must be"),
        ("optimizer.name", "sdg", "^optimizer.name='sdg' does not exist; did you mean sgd?"),
        ("model.output_stride", 5, "^model.output_stride=5 does not exist; choose from 8, 16, 32, 64, 128, 256"),
        ("model.output_stride", 4, "^model.output_stride=4 does not exist; choose from 8, 16, 32, 64, 128, 256"),
        ("model.low_level_strides", (8, 4), "^model.low_level_strides=.8, 4. does not exist"),
        ("model.low_level_strides", ([4],), "^model.low_level_strides=.* does not exist"),
        ("data.max_long_side", 2048, "^data.max_long_side=2048 needs data.short_side; set it, or max_long_side=0"),
        ("data.cat_max_ratio", 0.0, "^data.cat_max_ratio=0.0 must be a number above 0 and at most 1"),
        ("data.random_rotation", 181.0, "^data.random_rotation=181.0 must be a number between 0 and 180"),
        ("data.unreadable", "skp", "^data.unreadable='skp' does not exist; did you mean skip?"),
        ("unlabeled.threshold", 0.0, "^unlabeled.threshold=0.0 must be a number above 0 and at most 1"),
        ("unlabeled.threshold", 95, "^unlabeled.threshold=95.0 must be a number above 0 and at most 1"),
        ("unlabeled.weight", 0.0, "^unlabeled.weight=0.0 must be a number above 0"),
        ("unlabeled.cut_mix", 1.1, "^unlabeled.cut_mix=1.1 must be a number between 0 and 1"),
        ("unlabeled.teacher", "averag", "^unlabeled.teacher='averag' does not exist; did you mean average?"),
        ("unlabeled.split", "train+val", "^unlabeled.split and data.eval_split share the split val; a score"),
        ("train.nonfinite", "stopp", "^train.nonfinite='stopp' does not exist; did you mean stop?"),
        ("train.ema_decay", 1.0, "^train.ema_decay=1.0 must be a number above 0 and below 1"),
        ("distributed.heartbeat_seconds", 0, "^distributed.heartbeat_seconds=0 must be an integer between 1 and "),
        ("log.profile_steps", -1, "^log.profile_steps=-1 must be an integer between 0 and "),
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


def test_patience_needs_evaluations(tiny_config):
    tiny_config.train.patience, tiny_config.eval.every = 3, None
    with pytest.raises(UserError, match="^train.patience counts evaluations; set eval.every too"):
        validate(tiny_config)
    tiny_config.eval.every = "1 steps"
    validate(tiny_config)


def test_precise_statistics_need_a_planned_end(tiny_config):
    tiny_config.train.patience, tiny_config.eval.every, tiny_config.train.precise_norm_batches = 3, "1 steps", 2
    with pytest.raises(UserError, match="^train.precise_norm_batches needs a training that ends as planned"):
        validate(tiny_config)
    tiny_config.train.patience = None
    validate(tiny_config)


def test_the_averages_can_only_teach_if_there_are_some():
    config = load_config("quickstart")
    config.unlabeled.teacher = "average"
    validate(config)  # nothing is unlabeled
    config.unlabeled.split = "train"
    with pytest.raises(UserError, match=r"^unlabeled.teacher='average' .* set train.ema_decay too, .* 0.99$"):
        validate(config)
    config.train.ema_decay = 0.99
    validate(config)


def test_lists_of_json_files_are_legal_where_tuples_are():
    check_fields("model", {"low_level_strides": [4, 8]})
    with pytest.raises(UserError, match="low_level_strides=.4, 16. does not exist"):
        check_fields("model", {"low_level_strides": [4, 16]})


def test_fields_that_only_training_needs_may_be_unset_otherwise():
    config = base_config()
    config.update_from_flattened_dict(
        {"model.backbone": "resnet50_v1", "data.name": "sbd", "data.batch_size": 1, "data.image_size": (64, 64)}
    )
    # An earlier version accepted these.
    config.optimizer.momentum, config.log.every_steps, config.train.seed = 2.0, 0, -1
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
