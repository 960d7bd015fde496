"""The collectives of a compiled program, read from the HLO text that XLA prints of it."""

import dataclasses
import math
import re
from collections import Counter

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

# `%name = type opcode(operands), attributes`. In a type no lower-case word is followed by a parenthesis: layouts write
# T(8,128).
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (?P<type>.*?) (?P<opcode>[a-z][a-z0-9-]*)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) (?:\(.*\) -> .*)?\{$")
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<dims>[\d,]*)\]")
_OP_NAME = re.compile(r'op_name="(?P<name>[^"]*)"')
# What TPU compilers call a fusion of an all-reduce and the slice of it that a device keeps.
_FUSED_REDUCE_SCATTER = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices, wherever in the program it stands; inside a loop it is one all the same.

    Attributes:
      kind: one of `KINDS`; a fusion that reduces and keeps a slice is a `reduce-scatter`.
      arrays: dtype and shape of what a device holds afterwards.
      op_name: the operation of the traced program that it comes from, "" if unknown.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    op_name: str

    @property
    def num_bytes(self) -> int:
        """Bytes of what a device holds afterwards."""
        return sum(_bits(dtype) * math.prod(shape) for dtype, shape in self.arrays) // 8


def collectives(text: str) -> list[Collective]:
    """All collectives in a program's HLO text (`jax.stages.Compiled.as_text()`), in the order of the text.

    An asynchronous one counts where it starts. One inside a fusion or an asynchronous wrapper counts in the computation
    that these call, which the text holds once.
    """
    found, computation = [], ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header["name"]
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            continue
        kind, starts, _ = instruction["opcode"].partition("-start")
        if kind not in KINDS:
            continue
        arrays = _arrays(instruction["type"])
        if starts:
            arrays = _results_of_start(kind, arrays)
        if kind == "all-reduce" and computation.startswith(_FUSED_REDUCE_SCATTER):
            kind = "reduce-scatter"
        name = _OP_NAME.search(line)
        found.append(Collective(kind, arrays, name["name"] if name else ""))
    return found


def count_collectives(text: str) -> dict[str, int]:
    """How many collectives of each kind a program's HLO text has; kinds that it has none of are left out."""
    return dict(Counter(collective.kind for collective in collectives(text)))


def _arrays(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (array["dtype"], tuple(int(extent) for extent in array["dims"].split(",") if extent))
        for array in _ARRAY.finditer(text)
    )


def _results_of_start(kind: str, arrays):
    """An asynchronous all-reduce has the type of its result; the others carry operands, results, and contexts."""
    if kind == "all-reduce":
        return arrays
    data = [(dtype, shape) for dtype, shape in arrays if (dtype, shape) != ("u32", ())]
    return tuple(data[len(data) // 2 :])


def _bits(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return 8 if bits is None else int(bits[0])  # pred is a byte
