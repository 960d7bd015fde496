"""The terms of the training loss: their names and options, and the expression that adds them.

`config.loss.terms` is a sum such as `cross_entropy + 0.5 * dice(smooth=1)`. Each term is a mean of its own; the number
before it is its weight.
"""

import ast
import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Any

from deeplab_jax.config import ranges
from deeplab_jax.config.field import Field
from deeplab_jax.errors import UserError, suggest

_MAX_LENGTH = 1000  # the parser's stack does not overflow below it

_SMOOTH = Field(0.0, "added to the numerator and the denominator of each ratio", range=ranges.AT_LEAST_ZERO)

#: Options of each term by name.
LOSS_TERMS: Mapping[str, Mapping[str, Field]] = types.MappingProxyType(
    {
        "cross_entropy": {},
        "keras_cross_entropy": {},
        "top_k_cross_entropy": {
            "fraction": Field(
                0.25, "share of each image's pixels that count: those with the largest loss", range=ranges.SHARE
            ),
            "gradual_steps": Field(
                0, "steps in which the share falls from 1 to `fraction`; 0 starts there", range=ranges.COUNT_OR_ZERO
            ),
        },
        "ohem_cross_entropy": {
            "threshold": Field(
                0.7, "pixels count whose true class has a smaller probability", range=ranges.Range(above=0, below=1)
            ),
            "min_fraction": Field(
                0.0625, "at least this share of each image's labeled pixels counts", range=ranges.FRACTION
            ),
        },
        "boundary_cross_entropy": {
            "width": Field(
                3, "pixels count that have another class within this many rows and columns", range=ranges.RATE
            )
        },
        "binary_cross_entropy": {},
        "focal": {
            "gamma": Field(2.0, "exponent that weakens easy pixels", range=ranges.AT_LEAST_ZERO),
            "alpha": Field(
                0.25, "weight of the true class; the others have 1 - alpha", range=ranges.Range(above=0, below=1)
            ),
        },
        "softmax_focal": {"gamma": Field(2.0, "exponent that weakens easy pixels", range=ranges.AT_LEAST_ZERO)},
        "dice": {"smooth": _SMOOTH},
        "jaccard": {"smooth": _SMOOTH},
        "tversky": {
            "alpha": Field(0.3, "weight of false positives", range=ranges.AT_LEAST_ZERO),
            "beta": Field(0.7, "weight of false negatives", range=ranges.AT_LEAST_ZERO),
            "smooth": _SMOOTH,
        },
        "lovasz": {},
    }
)


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """A term of `config.loss.terms`.

    Attributes:
      name: a key of `LOSS_TERMS`.
      weight: factor on its mean.
      options: a value for each of its options.
    """

    name: str
    weight: float
    options: Mapping[str, Any]


def parse_loss_terms(text: str) -> tuple[LossTerm, ...]:
    """Parses `config.loss.terms`, for example `cross_entropy + 0.5 * dice(smooth=1)`.

    Raises:
      UserError: the text is not a sum of terms, or a term, an option or a number is not legal.
    """
    try:
        if len(text) > _MAX_LENGTH:
            raise SyntaxError
        return tuple(_parse_term(node, text) for node in _summands(ast.parse(text.strip(), mode="eval").body))
    except (SyntaxError, ValueError):  # a null byte is a ValueError
        shown = text if len(text) < 80 else f"{text[:80]}..."
        raise UserError(
            f"loss.terms={shown!r} is not a sum of terms; write for example 'cross_entropy + 0.5 * dice(smooth=1)'"
        ) from None


def _summands(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _summands(node.left)
        yield from _summands(node.right)
    else:
        yield node


def _parse_term(node: ast.expr, text: str) -> LossTerm:
    weight = 1.0
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        weight, node = _number(node.left), node.right
    if weight not in ranges.ABOVE_ZERO:
        raise UserError(f"loss.terms={text!r}: weight {weight!r} must be {ranges.ABOVE_ZERO}")
    arguments = {}
    if isinstance(node, ast.Call):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise SyntaxError
        arguments, node = {keyword.arg: _number(keyword.value) for keyword in node.keywords}, node.func
    if not isinstance(node, ast.Name):
        raise SyntaxError
    if node.id not in LOSS_TERMS:
        raise UserError(f"loss.terms={text!r}: term {node.id!r} does not exist{suggest(node.id, LOSS_TERMS)}")
    return LossTerm(node.id, float(weight), _options(node.id, arguments, text))


def _number(node: ast.expr) -> int | float:
    """Returns a number, which may have a sign."""
    value = ast.literal_eval(node)  # raises a ValueError for anything but literals
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SyntaxError
    return value


def _options(name: str, arguments: Mapping[str, Any], text: str) -> dict[str, Any]:
    fields = LOSS_TERMS[name]
    for option, value in arguments.items():
        if option not in fields:
            hint = suggest(option, fields) if fields else "; it has no options"
            raise UserError(f"loss.terms={text!r}: {name} has no option {option!r}{hint}")
        if value not in fields[option].range:
            raise UserError(f"loss.terms={text!r}: {option}={value!r} of {name} must be {fields[option].range}")
    return {option: arguments.get(option, field.default) for option, field in fields.items()}
