"""The config and the classes of a workdir, and its lock."""

import json
import pathlib

import pytest

from deeplab_jax.config import to_dict
from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.workdir import layout


@pytest.fixture
def begun(tmp_path, tiny_config) -> pathlib.Path:
    workdir = tmp_path / "runs" / "first"
    with layout.lock(workdir):
        layout.write_config(workdir, tiny_config, SYNTHETIC)
    return workdir


def test_the_config_and_the_classes_can_be_read_back(begun, tiny_config):
    assert to_dict(layout.read_config(begun)) == to_dict(tiny_config)
    assert layout.read_labels(begun) == SYNTHETIC
    assert sorted(path.name for path in begun.iterdir()) == ["config.json", "labels.json", "lock"]


@pytest.mark.parametrize(
    ("group", "field", "value", "shown"),
    [
        ("optimizer", "learning_rate", 0.5, "optimizer.learning_rate: 0.5 / 0.02"),
        ("data", "batch_size", 16, "data.batch_size: 16 / 8"),
        ("model", "output_stride", 8, "model.output_stride: 8 / 16"),
        ("train", "duration", "9 steps", "train.duration: '9 steps' / '2 steps'"),
        ("train", "accumulate_steps", 2, "train.accumulate_steps: 2 / 1"),
        ("loss", "label_smoothing", 0.1, "loss.label_smoothing: 0.1 / 0.0"),
    ],
)
def test_a_run_does_not_continue_with_a_different_config(begun, tiny_config, group, field, value, shown):
    (begun / "checkpoints" / "1").mkdir(parents=True)
    before = (begun / "config.json").read_bytes()
    tiny_config[group][field] = value
    with pytest.raises(UserError, match="holds a run with a different config") as caught:
        layout.write_config(begun, tiny_config, SYNTHETIC)
    assert f"({shown})" in str(caught.value)
    assert (begun / "config.json").read_bytes() == before


@pytest.mark.parametrize("left", [None, "checkpoints/1.orbax-checkpoint-tmp", "checkpoints/1.damaged"])
def test_a_run_without_a_checkpoint_is_replaced_by_one_with_another_config(begun, tiny_config, left):
    if left is not None:
        (begun / left).mkdir(parents=True)
    tiny_config.optimizer.learning_rate = 0.5
    layout.write_config(begun, tiny_config, SYNTHETIC)
    assert layout.read_config(begun).optimizer.learning_rate == 0.5


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [
        ("data", "data_dir", "/elsewhere"),
        ("model", "zero_unreached_taps", False),
        ("train", "duration", "2steps"),
        ("data", "workers", 2),
        ("data", "eval_split", "train"),
        ("eval", "protocol", "whole"),
        ("checkpoint", "keep", 5),
        ("log", "every_steps", 1),
        ("data", "unreadable", "skip"),
        ("train", "nonfinite", "skip"),
        ("train", "remat", "units"),
        ("mesh", "data", -1),
        ("mesh", "fsdp", 4),
        ("mesh", "spatial", 2),
    ],
)
def test_fields_that_do_not_change_the_training_may_change(begun, tiny_config, group, field, value):
    (begun / "checkpoints" / "1").mkdir(parents=True)
    tiny_config[group][field] = value
    layout.write_config(begun, tiny_config, SYNTHETIC)
    assert layout.read_config(begun)[group][field] == value


def test_one_training_at_a_time_runs_in_a_workdir(begun):
    refused = pytest.raises(UserError, match=f"^another training is running in {begun}; stop it, or")
    with layout.lock(begun), refused, layout.lock(begun):
        pass
    with layout.lock(begun):
        pass


@pytest.mark.parametrize("reader", [layout.read_config, layout.read_labels])
def test_a_folder_without_a_run_is_refused(tmp_path, reader):
    with pytest.raises(UserError, match=f"^{tmp_path} does not hold a run: it has no (config|labels).json"):
        reader(tmp_path)


@pytest.mark.parametrize("content", ['{"model": {', "", "\x00\x01", "[]", '{"model": 3}'])
def test_a_damaged_config_is_named(begun, content):
    (begun / "config.json").write_text(content)
    with pytest.raises(UserError, match=f"^{begun / 'config.json'} is damaged"):
        layout.read_config(begun)


@pytest.mark.parametrize("content", ['{"class_names": [', "{}", "[]", '{"class_names": ["a"], "palette": []}'])
def test_damaged_classes_are_named(begun, content):
    (begun / "labels.json").write_text(content)
    with pytest.raises(UserError, match=f"^{begun / 'labels.json'} is damaged"):
        layout.read_labels(begun)


def test_an_unknown_field_of_a_config_is_named(begun):
    values = json.loads((begun / "config.json").read_text())
    values["model"]["outptu_stride"] = 8
    (begun / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="config field model.outptu_stride does not exist; did you mean model.output"):
        layout.read_config(begun)
