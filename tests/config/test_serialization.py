"""Configs as JSON values, and the differences of two configs."""

import pytest

from deeplab_jax.config import base_config, differences, from_dict, load_config, to_dict
from deeplab_jax.errors import UserError


def test_an_unknown_field_in_json_is_named():
    values = to_dict(base_config())
    values["data"]["batchsize"] = 4
    with pytest.raises(UserError, match="^config field data.batchsize does not exist; did you mean data.batch_size?"):
        from_dict(values)


def test_fields_missing_from_json_keep_their_defaults():
    config = from_dict({"data": {"batch_size": 4}})
    assert config.data.batch_size == 4
    assert config.checkpoint.keep == base_config().checkpoint.keep


def test_unset_fields_accept_only_their_type():
    config = base_config()
    assert config.data.batch_size is None
    with pytest.raises(TypeError):
        config.data.batch_size = "four"
    with pytest.raises(AttributeError):
        config.data.batchsize = 4


def test_differences_are_limited_to_the_given_groups():
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
