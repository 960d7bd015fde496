"""Configs on the command line."""

import pytest

from deeplab_jax.cli.config_flags import parse_config, split_arguments
from deeplab_jax.config import base_config, load_config, to_dict
from deeplab_jax.errors import UsageError, UserError


def test_overrides_set_their_fields():
    config = parse_config(
        [
            "--config",
            "quickstart:size=64,batch=16",
            "--config.data.image_size=(48,40)",
            "--config.train.duration=3 steps",
            "--config.data.num_examples=12",  # a placeholder: None until set
            "--config.optimizer.clip_norm=2",
            "--config.eval.every=12.5%",
            "--config.model.multi_grid=(1,2,4)",
            "--config.optimizer.frozen=('backbone',)",
            "--config.log.tensorboard=False",
            "--config.train.init_from=runs/other",
            "--config.optimizer.learning_rate_multipliers.backbone=0.5",
        ]
    )
    expected = to_dict(load_config("quickstart", size=64, batch=16))
    expected["data"] |= {"image_size": [48, 40], "num_examples": 12}
    expected["train"] |= {"duration": "3 steps", "init_from": "runs/other"}
    expected["optimizer"] |= {"clip_norm": 2.0, "frozen": ["backbone"]}
    expected["optimizer"]["learning_rate_multipliers"]["backbone"] = 0.5
    expected["eval"]["every"] = "12.5%"
    expected["model"]["multi_grid"] = [1, 2, 4]
    expected["log"]["tensorboard"] = False
    assert to_dict(config) == expected


def test_a_value_can_follow_a_space_or_an_equals_sign():
    joined = parse_config(["--config=quickstart", "--config.train.seed=3"])
    apart = parse_config(["--config", "quickstart", "--config.train.seed", "3"])
    assert to_dict(joined) == to_dict(apart)
    assert apart.train.seed == 3


def test_without_a_name_overrides_change_the_base():
    config = parse_config(["--config.eval.protocol=squeeze"], base=load_config("quickstart"))
    assert config.eval.protocol == "squeeze"
    with pytest.raises(UsageError, match="config field eval.protocl does not exist; did you mean eval.protocol?"):
        parse_config(["--config.eval.protocl=squeeze"], base=load_config("quickstart"))


def test_an_unknown_argument_of_a_config_is_an_error():
    with pytest.raises(UserError, match="config argument 'sise' does not exist; did you mean size?"):
        parse_config(["--config", "quickstart:sise=3"])


def test_config_arguments_are_separated_from_others():
    given = ["--config", "quickstart", "--stray", "--config.train.seed", "3", "--config.data.name=sbd", "other"]
    config, others = split_arguments(given)
    assert config == ["--config", "quickstart", "--config.train.seed", "3", "--config.data.name=sbd"]
    assert others == ["--stray", "other"]
    assert split_arguments(["--config"]) == (["--config"], [])


def test_a_config_file_that_sets_an_unknown_field_is_reported_with_its_line(run, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from deeplab_jax.config import base_config\n"
        "def get_config(arg=None):\n"
        "    config = base_config()\n"
        "    config.data.batchsize = 4\n"
        "    return config\n"
    )
    code, _, err = run("summary", "--config", file)
    assert code == 1
    assert len(err) == 1, err
    assert err[0].startswith(f"deeplab-jax: config {file}, line 4: ")
    assert err[0].endswith("config field data.batchsize does not exist; did you mean data.batch_size?")


@pytest.mark.parametrize(
    ("arguments", "patience"),
    [
        (("--config.train.patience=3",), 3),
        (("--config.train.patience=3", "--config.train.patience=None"), None),
        (("--config.train.patience", "3", "--config.train.patience", "none"), None),
        (("--config.train.patience=None", "--config.train.patience=4"), 4),
        (("--config.train.patience", "None", "--config.data.batch_size=2"), None),
    ],
)
def test_none_unsets_an_optional_field(arguments, patience):
    base = base_config()
    base.train.patience = 7
    assert parse_config(arguments, base=base).train.patience == patience
