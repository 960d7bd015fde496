"""Finding and running config files, and reading their headers."""

import dataclasses
import json

import pytest

from deeplab_jax.config import describe_config, find_config, load_config, to_dict, to_saved
from deeplab_jax.errors import UserError


def test_a_config_is_found_by_path_and_by_name(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("")
    assert find_config(str(file)) == file
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart") == find_config("quickstart.py")
    assert find_config("quickstart").name == "quickstart.py"


@pytest.mark.parametrize("name", ["quikstart", "quikstart.py", "nowhere/quikstart.py"])
def test_a_missing_config_suggests_the_closest_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=f"^no config named '{name}': not a file and not a built-in config; did you mean quickstart?"
    ):
        find_config(name)


def test_a_path_to_a_missing_file_does_not_fall_back_to_a_built_in_config(tmp_path):
    with pytest.raises(UserError, match="^no config named"):
        find_config(str(tmp_path / "quickstart.py"))


def test_a_users_file_is_loaded_with_arguments(tmp_path):
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
def test_an_error_in_a_config_file_is_one_line_with_its_location(text, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=f"^config {file}(, |: ){message}") as caught:
        load_config(str(file))
    assert "\n" not in str(caught.value)


def test_the_saved_config_of_a_run_is_a_config(tmp_path):
    file = tmp_path / "config.json"
    config = load_config("quickstart", size=64)
    file.write_text(json.dumps(to_saved(config)))
    assert to_dict(load_config(str(file))) == to_dict(config)
    with pytest.raises(UserError, match=r"config.json takes no arguments \('size=32'\); override its fields"):
        load_config(str(file), size=32)
    with pytest.raises(UserError, match=f"^{tmp_path} is a folder, not a config; did you mean {file}"):
        find_config(str(tmp_path))
    file.write_text(json.dumps(to_saved(config) | {"optimizer": {"end_learning_rate": 1e-5}, "version": 1}))
    with pytest.raises(UserError, match="config.json: optimizer.end_learning_rate no longer exists"):
        load_config(str(file))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "x.json is damaged: not valid JSON"),
        ("x.json", '{"data": 3}', "x.json is damaged: data cannot be 3"),
        ("x.json", '{"format": "deeplab_jax"}', "x.json describes a saved network"),
        (
            "x.json",
            '{"optimizer": {"lr": 1}}',
            "config field optimizer.lr does not exist; did you mean optimizer.learn",
        ),
        ("x.json", '{"optimizer": {"momentum": ' + "1" * 4000 + "}}", "x.json is damaged: "),
        ("x.yaml", "lr: 1", "x.yaml is not a config: expected a Python file"),
        ("x", "lr: 1", "x is not a config: expected a Python file"),
        ("x.py", "\0", "config .*x.py, line "),
        ("x.py", "def get_config(arg):\n    pass\n", "x.py: get_config returned NoneType, not a config"),
        (
            "x.py",
            "from ml_collections import ConfigDict\ndef get_config(arg):\n    return ConfigDict({'lr': 1})\n",
            "x.py has no field model.backbone; start from deeplab_jax.config.base_config()",
        ),
    ],
)
def test_a_file_that_is_not_a_config_is_named(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "config.optimizer.lr = 0.1",
            "config field optimizer.lr does not exist; did you mean optimizer.learning_rate?",
        ),
        ("config.checkpoint.every_percent = 5", "checkpoint.every_percent does not exist; write checkpoint.every='N%'"),
        ("config.train.steps = 5", "config field train.steps does not exist; write train.duration='N steps'"),
        ("config.train.batchsize = 5", "config field train.batchsize does not exist; did you mean data.batch_size?"),
    ],
)
def test_an_unknown_field_in_a_config_file_suggests_the_right_one(line, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from deeplab_jax.config import base_config\n"
        f"def get_config(arg=None):\n    config = base_config()\n    {line}\n    return config\n"
    )
    with pytest.raises(UserError) as caught:
        load_config(str(file))
    assert str(caught.value).startswith(f"config {file}, line 4: ")
    assert str(caught.value).endswith(message)


def test_the_arguments_of_the_guide_set_its_fields():
    config = load_config("kerascv_guide", size=64, batch=2, steps=9)
    assert tuple(config.data.image_size) == (64, 64)
    assert (config.data.batch_size, config.train.duration) == (2, "9 steps")
    assert config.optimizer.learning_rate == pytest.approx(0.007 * 2 / 16, rel=1e-12)  # one product of doubles


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
