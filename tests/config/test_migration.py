"""Configs that earlier versions wrote are read as this version's: one of each kind, and every field that changed."""

import dataclasses
import json
import pathlib

import pytest

from deeplab_jax.config import (
    VERSION,
    base_config,
    differences,
    from_saved,
    load_config,
    migrate_config,
    migrate_model,
    to_dict,
    to_saved,
    validate,
)
from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.models import build_model
from deeplab_jax.workdir import layout

DATA = pathlib.Path(__file__).with_name("data")
# The command that wrote workdir_version1.json at commit 78d92dc, in this version's fields.
OVERRIDES = {
    "model.aspp_channels": 8,
    "model.decoder_channels": 8,
    "model.low_level_channels": 8,
    "data.num_examples": 16,
    "eval.every": "1.5epochs",
    "mesh.data": 1,
}

PART = {
    "name": "synthetic",
    "class_names": list(SYNTHETIC.class_names),
    "splits": {},
}
FINGERPRINTS = {"train": PART, "evaluate": PART}


def read(name):
    return json.loads((DATA / name).read_text())


@pytest.fixture
def same_config():
    config = load_config("quickstart", steps=6, size=32, batch=8)
    config.update_from_flattened_dict(OVERRIDES)
    return config


def test_a_workdir_of_version_1_has_the_config_of_the_command_that_wrote_it(same_config):
    config = from_saved(read("workdir_version1.json"))
    validate(config)
    assert differences(config, same_config, groups=tuple(config)) == {}
    assert (config.train.duration, config.eval.every) == ("6 steps", "1.5 epochs")
    assert (config.optimizer.warmup, config.checkpoint.every) == ("5%", "25%")


def test_a_run_of_version_1_continues_in_its_workdir(same_config, tmp_path):
    (tmp_path / "config.json").write_text((DATA / "workdir_version1.json").read_text())
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "labels.json").write_text(json.dumps(dataclasses.asdict(SYNTHETIC)))
    layout.write_config(tmp_path, same_config, SYNTHETIC, FINGERPRINTS)
    assert json.loads((tmp_path / "config.json").read_text())["version"] == VERSION
    layout.write_config(tmp_path, same_config, SYNTHETIC, FINGERPRINTS)
    same_config.optimizer.warmup = "6%"
    with pytest.raises(UserError, match=r"\(optimizer.warmup: '6%' / '5%'\)"):
        layout.write_config(tmp_path, same_config, SYNTHETIC, FINGERPRINTS)


@pytest.mark.parametrize("name", ["shipped_lite0_version1.json", "shipped_lite2_version1.json"])
def test_a_pretrained_network_of_version_1_builds(name):
    values = read(name)
    model = from_saved({"version": VERSION, "model": migrate_model(values["model"], values["version"])}).model
    assert build_model(model, len(values["class_names"])).backbone == values["model"]["backbone"]
    kept = {field: value for field, value in values["model"].items() if field != "decoder_dropout"}
    assert to_dict(model) == to_dict(base_config().model) | kept | {"zero_unreached_taps": False}


def test_this_version_is_read_as_it_is_written(same_config):
    values = json.loads(json.dumps(to_saved(same_config)))
    assert values["version"] == VERSION
    assert to_dict(from_saved(values)) == to_dict(same_config)


@pytest.mark.parametrize(
    ("group", "old", "new"),
    [
        ("train", {"steps": 30_000, "epochs": None, "examples": None}, {"duration": "30000 steps"}),
        ("train", {"epochs": 0.1 + 0.2}, {"duration": "0.30000000000000004 epochs"}),
        ("train", {"epochs": 30.0}, {"duration": "30 epochs"}),
        ("train", {"examples": 160_000}, {"duration": "160000 examples"}),
        ("train", {"steps": None, "epochs": None, "examples": None}, {}),
        ("optimizer", {"warmup_percent": 5.0, "warmup_steps": None}, {"warmup": "5%"}),
        ("optimizer", {"warmup_steps": 0}, {"warmup": "0 steps"}),
        ("optimizer", {"adam_beta2": 0.999, "end_learning_rate": 0.0}, {}),
        ("eval", {"every_examples": 12, "void": "ignore"}, {"every": "12 examples", "ignored_pixels": "exclude"}),
        ("eval", {"void": "background"}, {"ignored_pixels": "background"}),
        ("checkpoint", {"every_percent": 12.5}, {"every": "12.5%"}),
        ("model", {"decoder_dropout": 0.0}, {"zero_unreached_taps": True}),
        ("log", {"gallery_images": 3}, {}),
        ("loss", {"name": "keras"}, {"terms": "keras_cross_entropy"}),
    ],
)
def test_fields_of_version_1_become_fields_of_this_version(group, old, new):
    assert migrate_config({group: old}, 1) == {group: new}
    from_saved({group: old})


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [("model", "decoder_dropout", 0.1), ("optimizer", "end_learning_rate", 1e-5)],
)
def test_a_removed_field_with_an_effect_is_named(group, field, value):
    with pytest.raises(
        UserError, match=f"^{group}.{field} no longer exists, and this config sets it to .*; use the version"
    ):
        migrate_config({group: {field: value}}, 1, for_training=True)
    assert migrate_config({group: {field: value}}, 1) == migrate_config({group: {}}, 1)  # a trained network works


def test_a_run_with_a_removed_field_can_be_used_but_not_continued(same_config, tmp_path):
    values = read("workdir_version1.json")
    values["optimizer"]["end_learning_rate"] = 1e-5
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "labels.json").write_text(json.dumps(dataclasses.asdict(SYNTHETIC)))
    assert differences(layout.read_config(tmp_path), same_config, groups=("model", "data", "optimizer")) == {}
    with pytest.raises(UserError, match="config.json: optimizer.end_learning_rate no longer exists"):
        layout.write_config(tmp_path, same_config, SYNTHETIC, FINGERPRINTS)


def test_the_second_moment_of_adam_matters_to_adam_alone():
    assert migrate_config({"optimizer": {"name": "sgd", "adam_beta2": 0.95}}, 1) == {"optimizer": {"name": "sgd"}}
    with pytest.raises(UserError, match="^optimizer.adam_beta2 no longer exists"):
        migrate_config({"optimizer": {"name": "adam", "adam_beta2": 0.95}}, 1, for_training=True)


def test_a_duration_that_is_not_a_number_is_damage():
    with pytest.raises(TypeError, match="^epochs cannot be nan$"):
        migrate_config({"train": {"epochs": float("nan")}}, 1)


@pytest.mark.parametrize("version", [1, 2])
def test_copy_paste_had_other_names_until_version_2(version):
    old = {"data": {"paste_classes": [1, 3], "paste_share": 0.25, "batch_size": 4}}
    config = from_saved(old | {"version": version})
    assert (config.data.copy_paste_classes, config.data.copy_paste_share) == ((1, 3), 0.25)
    assert config.data.batch_size == 4
    assert config.model.zero_unreached_taps is False  # version 2 says itself
    with pytest.raises(UserError, match="^config field data.paste_share does not exist; write data.copy_paste_share$"):
        from_saved({"version": VERSION, "data": {"paste_share": 0.25}})


def test_fields_of_version_1_do_not_exist_in_this_version():
    with pytest.raises(UserError, match="^config field train.steps does not exist; write train.duration='N steps'$"):
        from_saved({"version": VERSION, "train": {"steps": 3}})


@pytest.mark.parametrize(
    ("name", "terms"), [("softmax_cross_entropy", "cross_entropy"), ("keras", "keras_cross_entropy")]
)
def test_the_loss_of_version_2_becomes_a_term(name, terms):
    saved = {"version": 2, "loss": {"name": name, "label_smoothing": 0.1}, "train": {"duration": "3 steps"}}
    config = from_saved(saved)
    assert (config.loss.terms, config.loss.label_smoothing, config.train.duration) == (terms, 0.1, "3 steps")
    with pytest.raises(UserError, match="^config field loss.name does not exist; write loss.terms='cross_entropy'$"):
        from_saved(saved | {"version": VERSION})


def test_two_units_of_one_duration_are_named():
    with pytest.raises(UserError, match="^warmup_steps and warmup_percent are both set; set only one$"):
        migrate_config({"optimizer": {"warmup_steps": 3, "warmup_percent": 5.0}}, 1)


@pytest.mark.parametrize("version", [0, VERSION + 1, "1", None])
def test_an_unknown_version_is_named(version):
    with pytest.raises(
        UserError, match=f"^config version {version!r} is not supported: .* reads versions 1 to {VERSION}"
    ):
        from_saved(to_dict(base_config()) | {"version": version})


def test_durations_that_mean_the_same_do_not_differ(same_config):
    other = same_config.copy_and_resolve_references()
    other.train.duration, other.eval.every, other.checkpoint.every = "6steps", "1.50 epochs", "25.0 %"
    assert differences(same_config, other, groups=("train", "eval", "checkpoint")) == {}
    other.train.duration = "6 epochs"
    assert differences(same_config, other, groups=("train",)) == {
        "train.duration": "train.duration: '6 steps' / '6 epochs'"
    }
