"""The schema: typed defaults, and legal values that the code implements, all of them and no others."""

import pytest

from deeplab_jax import losses, ops
from deeplab_jax.config import FIELDS, base_config, check_fields, iterate_fields
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.models import layers
from deeplab_jax.models.deeplab import PARTS
from deeplab_jax.training import optimizer

CHOICES = [(path, value) for path, field in iterate_fields() for value in field.choices]


def test_every_field_has_a_default_or_a_type_and_a_help_text():
    config = base_config()
    for path, field in iterate_fields():
        assert field.help, path
        assert (field.default is None) == (field.value_type is not None), path
        group, _, name = path.partition(".")
        if "." not in name:
            assert config[group].get_type(name) is (field.value_type or type(field.default)), path


def test_the_default_is_a_legal_value():
    for path, field in iterate_fields():
        assert not field.choices or field.default in field.choices, path


@pytest.mark.parametrize("path", sorted({path for path, _ in CHOICES}))
def test_a_value_that_is_not_legal_is_refused_with_the_nearest(path):
    group, _, name = path.partition(".")
    first = next(iter(FIELDS[group][name].choices))
    with pytest.raises(UserError, match=f"^{path}='{first}x' does not exist; (did you mean|choose from) "):
        check_fields(group, {name: f"{first}x"})
    check_fields(group, {name: first})
    check_fields(group, {})


def test_legal_values_are_those_that_the_code_implements():
    assert set(FIELDS["model"]["padding"].choices) == set(ops.PADDINGS)
    assert set(FIELDS["model"]["kernel_init"].choices) == set(layers.KERNEL_INITS) == set(layers.CLASSIFIER_INITS)
    assert set(FIELDS["loss"]["name"].choices) == set(losses.LOSSES)
    assert set(FIELDS["optimizer"]["learning_rate_multipliers"]) == set(PARTS)


@pytest.mark.parametrize(("path", "value"), [pair for pair in CHOICES if pair[0].startswith("optimizer.")])
def test_every_legal_value_of_the_optimizer_is_implemented(path, value):
    group = base_config().optimizer
    group.update(learning_rate=0.1, clip_norm=1.0, weight_decay=0.1)
    group[path.partition(".")[2]] = value
    optimizer.make(group, 10, parts=PARTS)


@pytest.mark.parametrize("name", FIELDS["eval"]["protocol"].choices)
def test_every_legal_protocol_is_implemented(name):
    config = base_config()
    config.data.image_size, config.eval.protocol = (32, 32), name
    assert type(protocol_for(config)).__name__.lower() == name
