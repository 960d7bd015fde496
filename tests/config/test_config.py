"""Configs: typed arguments, durations, validation, JSON and back, and every config that the package brings."""

import ast
import dataclasses
import json
import math
import pathlib

import pytest
from ml_collections import ConfigDict, config_dict

from deeplab_jax import pretrained
from deeplab_jax.config import (
    base_config,
    config_folders,
    describe_config,
    differences,
    duration_steps,
    eval_batch_size,
    find_config,
    from_dict,
    list_configs,
    load_config,
    parse_arg,
    parse_stage,
    to_dict,
    validate,
)
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.models import build_model
from deeplab_jax.parallel.mesh import MESH_AXES, mesh_sizes, validate_mesh
from deeplab_jax.pretrained import bundle
from tests.support import exports

CONFIG_FILES = sorted(file for folder in config_folders() for file in folder.glob("*.py"))


@pytest.fixture(params=CONFIG_FILES, ids=lambda file: file.stem)
def config_file(request) -> pathlib.Path:
    return request.param


# ---- Arguments behind the colon ----


def test_arguments_take_the_types_of_their_defaults():
    arg = parse_arg("size=256,rate=1,name=sbd,flip,crop=False,steps=7", size=512, rate=0.5, name="voc", flip=False,
                    crop=True, steps=None, batch=4)  # fmt: skip
    assert arg.to_dict() == {
        "size": 256, "rate": 1.0, "name": "sbd", "flip": True, "crop": False, "steps": 7, "batch": 4,
    }  # fmt: skip
    assert isinstance(arg.rate, float)


@pytest.mark.parametrize("arg", [None, ""])
def test_without_arguments_the_defaults_hold(arg):
    assert parse_arg(arg, size=512, steps=None).to_dict() == {"size": 512, "steps": None}


@pytest.mark.parametrize("item", ["size=0.5", "size=big", "size=(1,2)", "size=True", "size", "size=", "flip=1"])
def test_an_argument_of_another_type_is_refused_by_name(item):
    with pytest.raises(UserError, match=f"^config argument {item.split('=')[0]}='.*' is not a (int|bool)$"):
        parse_arg(item, size=512, flip=False)


@pytest.mark.parametrize("item", ["steps=many", "steps=True", "steps='7'"])
def test_an_argument_without_a_default_is_a_number(item):
    with pytest.raises(UserError, match="^config argument steps=.* is not a number$"):
        parse_arg(item, steps=None)


def test_an_unknown_argument_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match="'sise' does not exist; did you mean size?"):
        parse_arg("sise=256", size=512, batch=4)
    with pytest.raises(UserError, match="'x' does not exist; choose from size, batch"):
        parse_arg("x=256", size=512, batch=4)


def test_suggest_names_the_nearest_or_all():
    assert suggest("quikstart", ["quickstart", "camvid"]) == "; did you mean quickstart?"
    assert suggest("zzz", ["quickstart", "camvid"]) == "; choose from quickstart, camvid"


# ---- Finding and loading ----


STAGES = {1: {"init": "imagenet", "rate": 0.1, "rates": (6, 12)}, 2: {"init": "", "rate": 0.05, "rates": (3, 6)}}


@pytest.mark.parametrize(
    ("arg", "settings"),
    [
        (None, STAGES[1]),
        ("rate=0.2,init=other", {"init": "other", "rate": 0.2, "rates": (6, 12)}),
        ("rate=0", {"init": "imagenet", "rate": 0, "rates": (6, 12)}),
        ("stage=2,init=runs/stage1", {"init": "runs/stage1", "rate": 0.05, "rates": (3, 6)}),
    ],
)
def test_a_stage_has_its_settings_unless_arguments_override_them(arg, settings):
    assert parse_stage(arg, STAGES, settable=("init", "rate")).to_dict() == settings


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("stage=3", "stage=3 does not exist; choose from 1, 2"),
        ("stage=2", "stage 2 starts from the weights of the stage before; give its workdir, init=FOLDER"),
        ("rates=3", "'rates' does not exist; did you mean rate?"),
        ("rate=fast", "rate='fast' is not a number"),
    ],
)
def test_an_invalid_stage_is_named(arg, message):
    with pytest.raises(UserError, match=message):
        parse_stage(arg, STAGES, settable=("init", "rate"))


def test_a_config_is_found_by_path_and_by_name(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("")
    assert find_config(str(file)) == file
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart") == find_config("quickstart.py")
    assert find_config("quickstart").name == "quickstart.py"


@pytest.mark.parametrize("name", ["quikstart", "quikstart.py", "nowhere/quikstart.py"])
def test_a_config_that_is_not_there_is_refused_with_the_nearest_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=f"^no config named '{name}': not a file and not a built-in config; did you mean quickstart?"
    ):
        find_config(name)


def test_a_path_into_a_folder_that_lacks_the_file_does_not_fall_back_to_the_package(tmp_path):
    with pytest.raises(UserError, match="^no config named"):
        find_config(str(tmp_path / "quickstart.py"))


def test_a_file_of_ones_own_is_loaded_with_its_arguments(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from deeplab_jax.config import base_config, parse_arg\n"
        "def get_config(arg=None):\n"
        "    config = base_config()\n"
        "    config.data.batch_size = parse_arg(arg, batch=2).batch\n"
        "    return config\n"
    )
    assert load_config(str(file)).data.batch_size == 2
    assert load_config(str(file), batch=6).data.batch_size == 6
    with pytest.raises(UserError, match="did you mean batch"):
        load_config(str(file), bach=6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(arg=None)\n    return 1\n", "line 1: expected ':'"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1\ndef get_config(arg=None):\n    return y\n", "line 3: NameError: name 'y' is not defined"),
        ("x = 1\n", "AttributeError: .* has no attribute 'get_config'"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line_that_names_it(text, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=f"^config {file}(, |: ){message}") as caught:
        load_config(str(file))
    assert "\n" not in str(caught.value)


def test_the_guides_arguments_reach_its_fields():
    config = load_config("kerascv_guide", size=64, batch=2, steps=9)
    assert tuple(config.data.image_size) == (64, 64)
    assert (config.data.batch_size, config.train.duration) == (2, "9 steps")
    assert config.optimizer.learning_rate == pytest.approx(0.007 * 2 / 16, rel=1e-12)  # one product of doubles


# ---- Every config of the package ----


def test_the_package_brings_configs():
    assert {"quickstart", "kerascv_guide"} <= {file.stem for file in CONFIG_FILES}


def check(config, *, devices, processes=1):
    validate(config)
    validate_mesh(config, devices=devices, processes=processes)


def fewest_devices(config):
    return math.prod(max(size, 1) for size in (config.mesh[axis] for axis in MESH_AXES))


def test_every_config_is_valid_and_describes_a_network(config_file):
    config = load_config(str(config_file))
    check(config, devices=fewest_devices(config))
    model = build_model(config.model, num_classes=21, compute_dtype=config.train.compute_dtype)
    assert model.backbone == config.model.backbone
    sizes = {"batch_size": config.data.batch_size, "num_examples": 10_000}
    total_steps = duration_steps(config.train.duration, field="train.duration", **sizes)
    assert total_steps > 0
    assert (
        duration_steps(config.optimizer.warmup, field="optimizer.warmup", total_steps=total_steps, **sizes) or 0
    ) >= 0


def test_every_config_has_the_schemas_fields_and_types(config_file):
    config, schema = load_config(str(config_file)), base_config()
    assert _types(config).keys() == _types(schema).keys()
    for field, kind in _types(config).items():
        assert kind == _types(schema)[field], field


def _types(config: ConfigDict, path: str = "") -> dict[str, type]:
    types = {}
    for key in config:
        value = config.get_oneway_ref(key).get() if config.get(key) is not None else None
        if isinstance(value, ConfigDict):
            types |= _types(value, f"{path}{key}.")
        else:
            types[path + key] = config.get_type(key)
    return types


def test_every_config_says_how_to_run_it(config_file):
    described = describe_config(config_file)
    command = next(command for command in described.commands if "deeplab-jax train" in command)
    assert f" --config {config_file.stem}" in command
    assert " --workdir " in command


def test_every_config_has_a_short_header_with_its_score(config_file):
    described = describe_config(config_file)
    assert len(ast.get_docstring(ast.parse(config_file.read_text())).splitlines()) <= 15
    assert described.name == config_file.stem
    assert described.summary.endswith(".")
    assert described.arguments.startswith("Arguments")
    assert described.data
    assert described.score
    assert bool(described.hardware) == bool(described.commit)
    assert described.hardware or described.score.startswith("not run")


def test_built_in_configs_are_listed_by_name():
    assert [described.name for described in list_configs()] == [file.stem for file in CONFIG_FILES]


def test_a_header_is_read_without_running_the_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        '"""What it is,\nin two lines.\n\n    pip install x\n    deeplab-jax train \\\n        --config mine\n\n'
        "A remark.\n\n"
        'Data: mine\nScore: .5 on val,\n  .6 on test\nHardware: a laptop\nCommit: abc\n"""\n'
        'raise ValueError\ndef get_config(arg=None):\n    """Arguments: `size`."""\n'
    )
    assert dataclasses.asdict(describe_config(file)) == {
        "name": "mine", "summary": "What it is, in two lines.", "arguments": "Arguments: `size`.",
        "commands": ("pip install x", "deeplab-jax train --config mine"), "data": "mine",
        "score": ".5 on val, .6 on test", "hardware": "a laptop", "commit": "abc",
    }  # fmt: skip
    file.write_text("x = 1\n")
    assert describe_config(file).summary == ""
    file.write_text("x = = 1\n")
    with pytest.raises(UserError, match=f"^config {file}, line 1: "):
        describe_config(file)


def test_every_config_survives_json(config_file):
    config = load_config(str(config_file))
    values = json.loads(json.dumps(to_dict(config)))
    again = from_dict(values)
    assert to_dict(again) == values
    assert differences(config, again, groups=tuple(config)) == {}
    assert isinstance(again.data.image_size, tuple)
    check(again, devices=fewest_devices(again))


def test_finetuning_builds_the_network_that_it_starts_from(tmp_path):
    network = exports.network(**exports.TINY_MOBILENET, backbone_norm_epsilon=0.5)
    bundle.save(network, tmp_path / "network")
    of_backbone = {group: {"backbone": tree["backbone"]} for group, tree in network.variables.items()}
    bundle.save(dataclasses.replace(network, label_set=None, variables=of_backbone), tmp_path / "backbone")
    whole, backbone = (load_config("finetune_folder", init=str(tmp_path / name)) for name in ("network", "backbone"))
    assert whole.train.init_from == str(tmp_path / "network")
    assert whole.model.to_dict() == network.model.to_dict() | {"zero_unreached_taps": True}
    assert (backbone.model.width_multiplier, backbone.model.backbone_norm_epsilon) == (0.1, 0.5)
    assert backbone.model.aspp_channels == base_config().model.aspp_channels  # the rest is the config's own
    assert load_config("finetune_folder").train.init_from == pretrained.DEFAULT_PRESET


def test_a_field_that_json_has_and_the_schema_has_not_is_refused_by_its_path():
    values = to_dict(base_config())
    values["data"]["batchsize"] = 4
    with pytest.raises(UserError, match="^config field data.batchsize does not exist; did you mean batch_size?"):
        from_dict(values)


def test_json_of_fewer_fields_leaves_the_others_at_the_schemas_values():
    config = from_dict({"data": {"batch_size": 4}})
    assert config.data.batch_size == 4
    assert config.checkpoint.keep == base_config().checkpoint.keep


def test_unset_fields_can_be_set_but_not_with_another_type():
    config = base_config()
    assert config.data.batch_size is None
    with pytest.raises(TypeError):
        config.data.batch_size = "four"
    with pytest.raises(AttributeError):
        config.data.batchsize = 4


def test_differences_name_fields_of_the_groups_asked_for():
    config, other = load_config("quickstart"), load_config("quickstart")
    other.model.atrous_rates = list(other.model.atrous_rates)  # as JSON gives them: the same
    assert differences(config, other, groups=("model", "data")) == {}
    other.data.batch_size = 4
    other.data.name = "sbd"
    other.log.every_steps = 1
    assert differences(config, other, groups=("model", "data")) == {
        "data.name": "data.name: 'synthetic' / 'sbd'",
        "data.batch_size": "data.batch_size: 16 / 4",
    }


# ---- Validation ----


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.backbone", None, "^model.backbone is not set"),
        ("data.name", None, "^data.name is not set"),
        ("data.batch_size", None, "^data.batch_size is not set"),
        ("data.image_size", None, "^data.image_size is not set"),
        ("optimizer.learning_rate", None, "^optimizer.learning_rate is not set"),
        ("data.batch_size", 6, "^data.batch_size=6 does not divide over 4 devices; use a multiple of 4"),
        ("data.batch_size", 0, "^data.batch_size=0"),
        ("eval.batch_size", 6, "^eval.batch_size=6 does not divide over 4 devices"),
        ("mesh.data", 5, "^mesh.data=5, mesh.fsdp=1, mesh.spatial=1 needs 5 devices, there are 4"),
        ("mesh.data", 0, "^mesh.data=0 must be at least 1, or -1"),
        ("mesh.fsdp", -1, "^mesh.data=-1, mesh.fsdp=-1, mesh.spatial=1: only one of them can be -1"),
        ("mesh.fsdp", 3, "^mesh.data=-1, mesh.fsdp=3, mesh.spatial=1 does not divide 4 devices"),
        ("mesh.fsdp_min_size", 0, "^mesh.fsdp_min_size=0 must be at least 1"),
        ("train.accumulate_steps", 0, "^train.accumulate_steps=0 must be at least 1"),
        ("train.accumulate_steps", 3, "^data.batch_size=.* train.accumulate_steps=3 parts .* use a multiple of 12"),
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
        check(config, devices=4)
    assert "\n" not in str(caught.value)


def test_what_only_training_needs_may_be_unset_elsewhere():
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
def test_scales_of_random_crops_have_to_rise(resize, scales):
    config = load_config("quickstart")
    config.data.scale_range = scales
    validate(config)  # not used by squeeze
    config.data.resize = resize
    with pytest.raises(UserError, match="^data.scale_range="):
        validate(config)


def test_a_batch_has_to_divide_over_the_devices_of_the_mesh():
    config = load_config("quickstart", batch=6)
    config.mesh.data = 2
    check(config, devices=8)
    config.mesh.update({"data": 2, "fsdp": 2})
    with pytest.raises(UserError, match="^data.batch_size=6 does not divide over 4 devices"):
        check(config, devices=8)
    config.data.batch_size, config.eval.batch_size = 4, 6
    with pytest.raises(UserError, match="^eval.batch_size=6 does not divide over 4 devices"):
        check(config, devices=8)


def test_the_mesh_takes_the_rest_of_the_devices_where_it_says_so():
    config = base_config().mesh
    assert mesh_sizes(config, 8) == {"data": 8, "fsdp": 1, "spatial": 1}
    config.update({"data": 2, "fsdp": -1, "spatial": 2})
    assert mesh_sizes(config, 8) == {"data": 2, "fsdp": 2, "spatial": 2}
    config.update({"fsdp": 1})
    assert mesh_sizes(config, 7) == {"data": 2, "fsdp": 1, "spatial": 2}  # four of the seven


def test_every_process_has_its_devices_in_the_mesh():
    config = load_config("quickstart", batch=8)
    config.mesh.data = 4
    check(config, devices=8)
    with pytest.raises(UserError, match="^the mesh takes 4 of 8 devices"):
        check(config, devices=8, processes=2)


def test_a_image_stays_in_one_process():
    config = load_config("quickstart", batch=8, size=128)
    config.eval.protocol = "guide"
    config.model.output_stride = 8
    config.mesh.update({"data": 2, "spatial": 4})
    check(config, devices=8, processes=2)
    with pytest.raises(UserError, match="^mesh.spatial=4 splits images over processes.* the 2 devices of a process"):
        check(config, devices=8, processes=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.image_size": (72, 64)}, r"^data.image_size=\(72, 64\) does not divide; .* must be a multiple of 32"),
        ({"eval.image_size": (33, 64)}, r"^eval.image_size=\(33, 64\) does not divide"),
        ({"eval.image_size": None}, "^eval.image_size is not set; .* must be a multiple of 32"),
        ({"eval.protocol": "squeeze"}, "^eval.protocol='squeeze' .*mesh.spatial=4"),
        ({"model.align_corners": True}, "^model.align_corners=True .*mesh.spatial=4"),
        ({"eval.scales": (0.75, 1.0)}, "^eval.scales=.0.75, 1.0. .*mesh.spatial=4"),
        ({"data.image_size": (64, 50), "eval.image_size": (96, 17)}, None),  # widths are free
        ({"eval.protocol": "guide", "eval.image_size": None}, None),
    ],
)
def test_split_rows_need_heights_that_divide(changes, message):
    config = load_config("quickstart", batch=8)
    config.model.output_stride = 8
    config.data.image_size = config.eval.image_size = (64, 64)
    config.eval.protocol = "whole"
    config.mesh.update({"data": 2, "spatial": 4})
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    if message is None:
        check(config, devices=8)
    else:
        with pytest.raises(UserError, match=message):
            check(config, devices=8)


def test_evaluation_takes_the_training_batch_unless_it_has_its_own():
    config = base_config()
    config.data.batch_size = 6
    assert eval_batch_size(config) == 6
    config.eval.batch_size = 3
    assert eval_batch_size(config) == 3
