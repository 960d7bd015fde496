"""Configs that are Python files are read as text; nothing in them runs."""

import pytest

from deeplab_jax.pretrained.readers.python_config import lookup, read_assignments

TEXT = """
_base_ = ['../a.py']
rates = (1, 6, 12)
model = dict(
    backbone=dict(depth=50, strides=(1, 2, 2, 1), norm_cfg=None),
    head={'dilations': rates, 'scale': -0.5, 'names': ['a', "b"], 3: 4},
    fn=lambda x: x,
    path='C:\\d',
)
model.head = 3
import os
os.system('touch it_ran')
x = y = 2
other = open('it_ran', 'w')
"""


def test_assignments_of_literals_and_dicts_are_read():
    values = read_assignments(TEXT)
    assert values["rates"] == (1, 6, 12)
    assert lookup(values, "model", "backbone", "strides") == (1, 2, 2, 1)
    assert lookup(values, "model", "head") == {"dilations": (1, 6, 12), "scale": -0.5, "names": ["a", "b"]}
    assert lookup(values, "model", "fn") is lookup(values, "model", "head", "dilations", "deeper") is None
    assert "x" not in values
    assert values["other"] is None


@pytest.mark.parametrize(
    "text",
    [
        "model = dict(",
        "model = " + "(" * 100_000,
        "model = " + "-" * 200_000 + "1",
        "a = 1\0",
        "a = 1  #" + "x" * (1 << 18),
    ],
)
def test_text_that_is_not_a_config_has_no_assignments(text):
    assert read_assignments(text) == {}


def test_names_that_double_their_value_take_no_time():
    text = "a0 = (1, 1)\n" + "\n".join(f"a{i + 1} = (a{i}, a{i})" for i in range(10_000))
    assert len(read_assignments(text)) == 10_001
