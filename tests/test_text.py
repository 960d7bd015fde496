"""Text that is safe to print."""

import pytest

from deeplab_jax.text import printable


@pytest.mark.parametrize(
    "text", ["road", "p1 [x].png", "straße", "道路", "سیب\u200cزمینی", "e\u0301", "👨\u200d🌾", "$x$"]
)
def test_letters_of_any_language_are_unchanged(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\x9b31mb", r"a\x9b31mb"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("gpj.\u202egnp", r"gpj.\u202egnp"),  # reverses the rest of the line
        ("a\u2028b", r"a\u2028b"),
        ("a\udcffb", r"a\udcffb"),  # a byte of a file name that is not UTF-8
        ("a\x00\x07\x7fb", r"a\x00\x07\x7fb"),
    ],
)
def test_characters_that_act_on_a_terminal_are_escaped(text, shown):
    assert printable(text) == shown
    printable(text).encode()
