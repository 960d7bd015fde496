"""Stages of a config: their order, their fields, and how they are saved and overridden."""

import json

import pytest

from deeplab_jax import config as config_lib
from deeplab_jax.cli.config_flags import parse_config, parse_stage_config
from deeplab_jax.errors import UsageError, UserError


def staged(**stages):
    config = config_lib.load_config("quickstart")
    config.stages = stages
    return config


SECOND = {"model": {"output_stride": 8}, "optimizer": {"learning_rate": 0.001}}


def test_stages_are_in_the_order_of_their_names_with_numbers_as_numbers():
    assert config_lib.stage_names(staged(stage10={}, stage9={}, first={})) == ["first", "stage9", "stage10"]
    assert config_lib.stage_names(config_lib.base_config()) == []


def test_a_stage_has_the_shared_fields_and_its_own():
    config = staged(stage1={}, stage2=SECOND | {"data": {"image_size": [64, 64]}})
    first, second = config_lib.stage_configs(config).values()
    assert (second.model.output_stride, second.optimizer.learning_rate) == (8, 0.001)
    assert second.data.image_size == (64, 64)
    assert len(second.stages) == 0
    config.stages = {}
    assert first == config
    assert config_lib.stage_fields(staged(a=SECOND), "a") == {
        "model.output_stride": 8,
        "optimizer.learning_rate": 0.001,
    }


def test_stages_are_saved_and_loaded():
    config = staged(stage1={}, stage2=SECOND | {"data": {"image_size": (64, 64)}})
    saved = json.loads(json.dumps(config_lib.to_saved(config)))
    assert config_lib.from_saved(saved) == config
    assert "stages" not in config_lib.to_saved(config_lib.base_config())


@pytest.mark.parametrize("stages", [[], {"a": 1}, {"a": {"model": {"output_strid": 8}}}, {"a": {"model": 8}}])
def test_damaged_stages_of_a_saved_config_are_refused(stages):
    with pytest.raises((UserError, TypeError), match="stages"):
        config_lib.from_saved(config_lib.to_saved(config_lib.base_config()) | {"stages": stages})


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            {"a": {"model": {"output_strid": 8}}},
            "stages.a: config field model.output_strid does not exist; did you mean",
        ),
        (
            {"a": {"modl": {"output_stride": 8}}},
            "stages.a: config field modl.output_stride does not exist; did you mean",
        ),
        ({"a": {"model": {"output_stride": "x"}}}, "stages.a: model.output_stride='x': "),
        ({"a": {"model": 8}}, "stages.a: config field model is a group of fields; set one of model.align_corners"),
        ({"a": {"stages": {"b": 1}}}, "stages.a: config field stages.b does not exist"),
        ({"a": 3}, "stages.a=3 must be groups of fields"),
        ({"a/b": {}}, "stages.a/b: a stage is also a folder"),
        ({"a": {}, "b": {"model": {"output_stride": 9}}}, "stage b: model.output_stride=9 does not exist"),
        ({"a": {"data": {"batch_size": 0}}}, "stage a: data.batch_size=0 must be"),
    ],
)
def test_a_mistake_in_a_stage_is_named(stages, message):
    with pytest.raises(UserError) as caught:
        config_lib.validate(staged(**stages))
    assert str(caught.value).startswith(message)


def test_overrides_reach_all_stages_or_one():
    overrides = ["--config.data.batch_size=3", "--config.optimizer.learning_rate=0.5"]
    overrides += ["--config.stages.stage2.optimizer.momentum=0.5", "--config.stages.stage1.data.image_size=(32, 48)"]
    config = parse_config(overrides, base=staged(stage1={}, stage2=SECOND))
    first, second = config_lib.stage_configs(config).values()
    assert (first.data.batch_size, second.data.batch_size) == (3, 3)
    assert (first.optimizer.learning_rate, second.optimizer.learning_rate) == (0.5, 0.001)
    assert (first.optimizer.momentum, second.optimizer.momentum) == (0.9, 0.5)
    assert first.data.image_size == (32, 48) != second.data.image_size


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.stage3.optimizer.momentum=0.5", "config field stages.stage3.optimizer.momentum does not exist"),
        ("stages.stage2.optimizer.momentumm=0.5", "config field stages.stage2.optimizer.momentumm does not exist"),
        ("stages.stage2.optimizer=0.5", "config field stages.stage2.optimizer is a group of fields"),
        ("stages.stage2.optimizer.momentum=x", "config: flag --config.stages.stage2.optimizer.momentum=x: could not"),
    ],
)
def test_a_wrong_override_of_a_stage_is_named(override, message):
    with pytest.raises(UsageError) as caught:
        parse_config([f"--config.{override}"], base=staged(stage1={}, stage2=SECOND))
    assert str(caught.value).startswith(message)


def test_the_second_stage_of_the_papers():
    config = config_lib.load_config("deeplabv3plus_resnet101_voc", two_stages=True)
    config_lib.validate(config)
    first, second = config_lib.stage_configs(config).values()
    changed = config_lib.differences(second, first, groups=list(config_lib.FIELDS))
    assert set(changed.values()) == {
        "model.output_stride: 8 / 16", "model.freeze_norm_statistics: True / False",
        "data.train_split: 'trainval' / 'trainaug'", "optimizer.learning_rate: 0.001 / 0.007",
    }  # fmt: skip


def test_commands_that_show_one_network_take_the_last_stage_or_a_named_one():
    arguments = ["--config", "deeplabv3plus_resnet101_voc:two_stages", "--config.data.batch_size=2"]
    assert parse_stage_config(arguments, None).model.output_stride == 8
    assert parse_stage_config(arguments, "stage1").model.output_stride == 16
    assert parse_stage_config(["--config", "quickstart"], None) == config_lib.load_config("quickstart")
    with pytest.raises(UserError, match="the config has no stage 'stage3'; did you mean stage"):
        parse_stage_config(arguments, "stage3")
    with pytest.raises(UserError, match="^the config has no stage 'stage1'$"):
        parse_stage_config(["--config", "quickstart"], "stage1")
