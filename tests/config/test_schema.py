"""The schema: typed defaults, and legal values that the code implements, all of them and no others."""

import inspect
import math
import re

import pytest

from deeplab_jax import losses, ops
from deeplab_jax.config import FIELDS, LOSS_TERMS, base_config, check_fields, iterate_fields
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.models import layers
from deeplab_jax.models.network import PARTS
from deeplab_jax.training import optimizer

_NUMBERS = (int, float, tuple)
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
    with pytest.raises(
        UserError, match=f"^{path}='{re.escape(str(first))}x' does not exist; (did you mean|choose from) "
    ):
        check_fields(group, {name: f"{first}x"})
    check_fields(group, {name: first})
    check_fields(group, {})


NUMERIC = [
    (path, field)
    for path, field in iterate_fields()
    if not field.choices and path != "optimizer.frozen" and (field.value_type or type(field.default)) in _NUMBERS
]


def test_every_number_has_a_range_that_contains_its_default():
    for path, field in NUMERIC:
        assert field.range is not None, path
        numbers = field.default if isinstance(field.default, tuple) else (field.default,)
        assert all(number in field.range for number in numbers if number is not None), path
    assert not [path for path, field in iterate_fields() if field.range is not None and (path, field) not in NUMERIC]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -2, 2**63, "1", None, True])
@pytest.mark.parametrize(("path", "field"), NUMERIC, ids=lambda value: value if isinstance(value, str) else "")
def test_a_number_outside_its_range_is_refused(path, field, number):
    group, *names = path.split(".")
    is_tuple = isinstance(field.default, tuple) or field.value_type is tuple
    values = (number,) if is_tuple else number
    if (number is None and not is_tuple) or number in field.range:
        return  # unset, or large numbers and numbers below zero are legal
    for name in reversed(names):
        values = {name: values}
    with pytest.raises(UserError, match=f"^{path}=.*(must be|each value must be) a") as caught:
        check_fields(group, values)
    assert "\n" not in str(caught.value)


def test_legal_values_are_those_that_the_code_implements():
    assert set(FIELDS["model"]["padding"].choices) == set(ops.PADDINGS)
    assert set(FIELDS["model"]["kernel_init"].choices) == set(layers.KERNEL_INITS) == set(layers.CLASSIFIER_INITS)
    assert set(LOSS_TERMS) == set(losses.LOSSES)
    assert set(FIELDS["loss"]["class_weight_rule"].choices) == {"given", *losses.CLASS_WEIGHT_RULES}
    for name, options in LOSS_TERMS.items():
        parameters = inspect.signature(losses.LOSSES[name][0]).parameters
        assert {option: parameters[option].default for option in options} == {
            option: field.default for option, field in options.items()
        }
    assert set(FIELDS["optimizer"]["learning_rate_multipliers"]) == set(PARTS)


@pytest.mark.parametrize(("path", "value"), [pair for pair in CHOICES if pair[0].startswith("optimizer.")])
def test_every_legal_value_of_the_optimizer_is_implemented(path, value):
    group = base_config().optimizer
    group.update(learning_rate=0.1, clip_norm=1.0, weight_decay=0.1)
    group[path.partition(".")[2]] = value
    transformation, schedule = optimizer.make(group, 10, parts=PARTS)
    assert callable(transformation.update)
    assert schedule(0) == pytest.approx(0.1)


@pytest.mark.parametrize("name", FIELDS["eval"]["protocol"].choices)
def test_every_legal_protocol_is_implemented(name):
    config = base_config()
    config.data.image_size, config.eval.protocol = (32, 32), name
    config.eval.scale_to, config.eval.window = (32, 32), (32, 32)
    assert type(protocol_for(config)).__name__.lower() == name.replace("_", "")
