"""The config and the classes of a workdir, and its lock."""

import json
import pathlib

import pytest

from deeplab_jax.config import to_dict
from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.workdir import layout

SPLIT = {"examples": 16, "ids": "12ab"}
TRAIN = {
    "name": "synthetic",
    "class_names": list(SYNTHETIC.class_names),
    "splits": {"train": SPLIT},
}
DATA = {"train": TRAIN, "evaluate": TRAIN | {"splits": {"val": SPLIT}}}


@pytest.fixture
def begun(tmp_path, tiny_config) -> pathlib.Path:
    workdir = tmp_path / "runs" / "first"
    with layout.lock(workdir):
        layout.write_config(workdir, tiny_config, SYNTHETIC, DATA)
    return workdir


def test_the_config_and_the_classes_can_be_read_back(begun, tiny_config):
    assert to_dict(layout.read_config(begun)) == to_dict(tiny_config)
    assert layout.read_labels(begun) == SYNTHETIC
    assert sorted(path.name for path in begun.iterdir()) == ["config.json", "data.json", "labels.json", "lock"]


@pytest.mark.parametrize(
    ("group", "field", "value", "shown"),
    [
        ("optimizer", "learning_rate", 0.5, "optimizer.learning_rate: 0.5 / 0.02"),
        ("data", "batch_size", 16, "data.batch_size: 16 / 8"),
        ("model", "output_stride", 8, "model.output_stride: 8 / 16"),
        ("train", "seed", 9, "train.seed: 9 / 0"),
        ("train", "accumulate_steps", 2, "train.accumulate_steps: 2 / 1"),
        ("loss", "label_smoothing", 0.1, "loss.label_smoothing: 0.1 / 0.0"),
    ],
)
def test_a_run_does_not_continue_with_a_different_config(begun, tiny_config, group, field, value, shown):
    (begun / "checkpoints" / "1").mkdir(parents=True)
    before = (begun / "config.json").read_bytes()
    tiny_config[group][field] = value
    with pytest.raises(UserError, match="holds a run with a different config") as caught:
        layout.write_config(begun, tiny_config, SYNTHETIC, DATA)
    assert f"({shown})" in str(caught.value)
    assert (begun / "config.json").read_bytes() == before


def test_a_run_continues_for_another_duration_only_if_it_is_extended(begun, tiny_config):
    (begun / "checkpoints" / "1").mkdir(parents=True)
    tiny_config.train.duration = "9 steps"
    with pytest.raises(UserError, match="holds a run with train.duration: '9 steps' / '2 steps'; pass --extend to"):
        layout.write_config(begun, tiny_config, SYNTHETIC, DATA)
    tiny_config.train.seed = 3
    with pytest.raises(UserError, match="holds a run with a different config .train.seed: 3 / 0.; choose"):
        layout.write_config(begun, tiny_config, SYNTHETIC, DATA, extend=True)
    tiny_config.train.seed = 0
    layout.write_config(begun, tiny_config, SYNTHETIC, DATA, extend=True)
    assert layout.read_config(begun).train.duration == "9 steps"


@pytest.mark.parametrize("left", [None, "checkpoints/1.orbax-checkpoint-tmp", "checkpoints/1.damaged"])
def test_a_run_without_a_checkpoint_is_replaced_by_one_with_another_config(begun, tiny_config, left):
    if left is not None:
        (begun / left).mkdir(parents=True)
    tiny_config.optimizer.learning_rate = 0.5
    layout.write_config(begun, tiny_config, SYNTHETIC, DATA)
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
    layout.write_config(begun, tiny_config, SYNTHETIC, DATA)
    assert layout.read_config(begun)[group][field] == value


def test_a_run_does_not_continue_with_other_unlabeled_images(begun, tiny_config):
    (begun / "checkpoints" / "1").mkdir(parents=True)
    unlabeled = TRAIN | {"splits": {"unlabeled": SPLIT}}
    layout.write_config(begun, tiny_config, SYNTHETIC, DATA | {"unlabeled": unlabeled})
    changed = unlabeled | {"splits": {"unlabeled": SPLIT | {"examples": 9}}}
    with pytest.raises(UserError, match="has changed: split unlabeled had 16 images and now has 9"):
        layout.write_config(begun, tiny_config, SYNTHETIC, DATA | {"unlabeled": changed})


def with_train(**changes):
    return DATA | {"train": TRAIN | changes}


@pytest.mark.parametrize("is_old", [False, True], ids=["", "old"])
@pytest.mark.parametrize(
    ("now", "message"),
    [
        (with_train(splits={"train": SPLIT | {"examples": 9}}), "split train had 16 images and now has 9"),
        (with_train(splits={"train": SPLIT | {"ids": "34cd"}}), "images of other names, or in another order"),
        (with_train(class_names=["ring", "disk"]), r"it had 6 classes \(.*\) and now has 2 \(ring, disk\)"),
        (with_train(class_names=[*TRAIN["class_names"][:-1], "cat"]), "class 5 was bar and now is cat"),
    ],
)
def test_a_run_does_not_continue_with_other_data(begun, tiny_config, now, message, is_old):
    (begun / "checkpoints" / "1").mkdir(parents=True)
    if is_old:  # an older version stored nothing but the classes
        (begun / "data.json").unlink()
    before = {path.name: path.read_bytes() for path in begun.iterdir() if path.is_file()}
    if is_old and "class" not in message:
        layout.write_config(begun, tiny_config, SYNTHETIC, now)
        return
    with pytest.raises(UserError, match=f"^the data of the run in {begun} has changed: .*{message}; prepare the data"):
        layout.write_config(begun, tiny_config, SYNTHETIC, now)
    assert {path.name: path.read_bytes() for path in begun.iterdir() if path.is_file()} == before


def test_other_data_to_evaluate_on_is_reported(begun, tiny_config, caplog):
    (begun / "checkpoints" / "1").mkdir(parents=True)
    another_split = DATA | {"evaluate": TRAIN | {"splits": {"test": SPLIT}}}
    layout.write_config(begun, tiny_config, SYNTHETIC, another_split)
    assert caplog.messages == []
    changed = DATA | {"evaluate": TRAIN | {"splits": {"test": SPLIT | {"examples": 9}}}}
    layout.write_config(begun, tiny_config, SYNTHETIC, changed)
    (message,) = caplog.messages
    assert message.startswith("the evaluation data has changed: split test had 16 images and now has 9")


@pytest.mark.parametrize("name", ["config.json", "labels.json"])
def test_a_run_without_its_config_or_classes_does_not_continue(begun, tiny_config, name):
    (begun / "checkpoints" / "1").mkdir(parents=True)
    (begun / name).unlink()
    with pytest.raises(UserError, match=f"^{begun} has checkpoints but no {name}, so the run cannot be continued"):
        layout.write_config(begun, tiny_config, SYNTHETIC, DATA)


@pytest.mark.parametrize("content", ["[]", "{", '{"train": {}}', '{"train": 3}'])
def test_a_damaged_description_of_the_data_is_named(begun, tiny_config, content):
    (begun / "checkpoints" / "1").mkdir(parents=True)
    (begun / "data.json").write_text(content)
    with pytest.raises(UserError, match=f"^{begun / 'data.json'} is damaged"):
        layout.write_config(begun, tiny_config, SYNTHETIC, DATA)


def test_files_and_folders_of_the_wrong_kind_are_named(tmp_path, tiny_config):
    (tmp_path / "lock").mkdir()
    with pytest.raises(UserError, match=f"^cannot write {tmp_path / 'lock'}: Is a directory"), layout.lock(tmp_path):
        pass
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=f"^cannot read the checkpoints in {tmp_path / 'checkpoints'}: Not a directory"):
        layout.write_config(tmp_path, tiny_config, SYNTHETIC, DATA)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path / 'config.json'} is not a file$"):
        layout.read_config(tmp_path)


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
