"""Durations: parsing, conversion to steps, and error messages."""

import pytest

from deeplab_jax.config import base_config, duration_steps, parse_duration
from deeplab_jax.errors import UserError

SIZES = {"field": "eval.every", "batch_size": 4, "num_examples": 100}


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7 steps", 7),
        ("7steps", 7),
        ("30000steps", 30_000),
        (" 3e4  steps ", 30_000),
        ("1 step", 1),
        ("0 steps", 0),
        ("2 epochs", 50),  # 2 * 100 / 4
        ("1 epoch", 25),
        ("0.5 epochs", 12),  # 12.5 rounds to even
        ("0.001epochs", 1),  # at least one
        ("0 epochs", 0),
        ("10 examples", 2),
        ("160000 examples", 40_000),
        ("0 examples", 0),
        ("5%", 50),
        ("12.5 %", 125),
        (".5%", 5),
        ("0%", 0),
    ],
)
def test_a_duration_in_any_unit_becomes_steps(text, steps):
    result = duration_steps(text, total_steps=1000, **SIZES)
    assert result == steps
    assert isinstance(result, int)


@pytest.mark.parametrize("value", [base_config().train.duration, base_config().eval.every, None])
def test_an_unset_duration_is_none(value):
    assert duration_steps(value, **SIZES) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3 epoch", "has an unknown unit; did you mean '3 epochs'?"),
        ("3 step", "has an unknown unit; did you mean '3 steps'?"),
        ("3 exampls", "has an unknown unit; did you mean '3 examples'?"),
        ("50 ep", "has an unknown unit; did you mean '50 epochs'?"),
        ("50e", "has an unknown unit; did you mean '50 epochs' or '50 examples'?"),
        ("50 Epochs", "has an unknown unit; did you mean '50 epochs'?"),
        ("2.5 p", "has an unknown unit; did you mean '2.5%'?"),
        ("5 percent", "has an unknown unit; did you mean '5%'?"),
        ("3 hours", "has an unknown unit; choose from steps, epochs, examples, %"),
        ("3", "has no unit; write one of '3 steps', '3 epochs', '3 examples', '3%'"),
        ("-1 steps", "must be a finite number of at least 0"),
        ("-0.5%", "must be a finite number of at least 0"),
        ("1e999 epochs", "must be a finite number of at least 0"),
        ("nan epochs", "is not a duration; write a number and a unit, for example '500 steps'"),
        ("inf steps", "is not a duration; write a number and a unit, for example '500 steps'"),
        ("steps", "is not a duration; write a number and a unit, for example '500 steps'"),
        ("", "is not a duration; write a number and a unit, for example '500 steps'"),
        ("3 steps or so", "is not a duration; write a number and a unit, for example '500 steps'"),
        ("2.5 steps", "must be a whole number of steps"),
        ("2.5 examples", "must be a whole number of examples"),
    ],
)
def test_an_invalid_duration_is_named(text, message):
    with pytest.raises(UserError) as caught:
        duration_steps(text, total_steps=1000, **SIZES)
    assert str(caught.value) == f"eval.every={text!r} {message}"


def test_the_length_of_the_training_cannot_be_a_percentage():
    with pytest.raises(UserError, match="^eval.every='5%' cannot be a percentage; use steps, epochs or examples$"):
        duration_steps("5%", **SIZES)
    with pytest.raises(
        UserError, match="^eval.every='5' has no unit; write one of '5 steps', '5 epochs', '5 examples'$"
    ):
        duration_steps("5", **SIZES)


def test_a_duration_of_more_steps_than_can_be_counted_is_named():
    with pytest.raises(UserError, match="^eval.every='1e300 steps' is 1e.300 steps; use at most 2147483647$"):
        duration_steps("1e300 steps", **SIZES)
    with pytest.raises(UserError, match="^eval.every='1e12 epochs' is 2.5e.13 steps"):
        duration_steps("1e12 epochs", **SIZES)


@pytest.mark.parametrize("text", ["30000 steps", "0.5 epochs", "12.5%", "160000 examples"])
def test_a_duration_is_written_as_it_is_read(text):
    assert str(parse_duration(text, field="eval.every")) == text
