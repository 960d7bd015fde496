"""Finds in the HLO text of a program for GPUs how its convolutions reach cuDNN, and what is transposed for them."""

import collections
import math
import re
from typing import Any

_CONVOLUTION = re.compile(r'dim_labels=(?P<labels>\S+?),? .*?custom_call_target="__cudnn\$(?P<target>\w+)"')
_MOVE = re.compile(
    r"= (?P<dtype>[a-z]+\d+)\[(?P<dims>[\d,]+)\]\{(?P<layout>[\d,]+)[^}]*\} (?P<opcode>transpose|copy)\("
    r"(?:(?P<operand_type>[a-z]+\d+\[[\d,]+\]\{(?P<operand_layout>[\d,]+)[^}]*\}) )?%?(?P<operand>[\w.-]+)\)"
    r"(?:.*?dimensions=\{(?P<order>[\d,]+)\})?"
)
_DEFINITION = re.compile(r"%?(?P<name>[\w.-]+) = [a-z]+\d+\[[\d,]*\]\{(?P<layout>[\d,]+)")
_LARGEST_WINDOW = 16  # pixels; no kernel of a convolution is larger


def describe_convolutions(text: str) -> dict[str, Any]:
    """Counts the convolutions in cuDNN by their layout, and the transposes in the program.

    Args:
      text: HLO text of a compiled program (`jax.stages.Compiled.as_text()`).

    Returns:
      `layouts`: number of convolutions by `dim_labels` (`b01f_o01i->b01f` is NHWC with the kernel layout that cuDNN
      wants for it); `transposed_activations` and `transposed_kernels`: number and bytes of arrays with four axes whose
      elements are reordered in memory.
    """
    layouts = collections.Counter(match["labels"] for match in _CONVOLUTION.finditer(text))
    found = {name: {"count": 0, "bytes": 0} for name in ("transposed_activations", "transposed_kernels")}
    stored = {match["name"]: match["layout"] for match in _DEFINITION.finditer(text)}
    for match in _MOVE.finditer(text):
        dims = [int(size) for size in match["dims"].split(",")]
        if len(dims) == 4 and _reorders(match, dims, stored):
            entry = found["transposed_kernels" if _is_kernel(dims) else "transposed_activations"]
            entry["count"] += 1
            entry["bytes"] += math.prod(dims) * int(re.sub(r"\D", "", match["dtype"])) // 8
    return {"layouts": dict(layouts.most_common()), **found}


def _reorders(match: re.Match, dims: list[int], stored: dict[str, str]) -> bool:
    """True if the elements change their order in memory; axes of one element do not count."""
    layout = [int(axis) for axis in match["layout"].split(",")]
    source = match["operand_layout"] or stored.get(match["operand"])
    if source is None:
        return True
    before = [int(axis) for axis in source.split(",")]
    if match["opcode"] == "transpose":
        order = match["order"].split(",")  # axis i of the result is axis order[i] of the operand
        before = [order.index(str(axis)) for axis in before]
    return [axis for axis in before if dims[axis] > 1] != [axis for axis in layout if dims[axis] > 1]


def _is_kernel(dims: list[int]) -> bool:
    """True for kernels, which have two axes of at most a few elements."""
    return sum(size <= _LARGEST_WINDOW for size in dims) >= 2
