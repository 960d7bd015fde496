"""Finds the collectives of a compiled program in its HLO text."""

import dataclasses
import math
import re
from collections import Counter

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

# `%name = type opcode(operands), attributes`. Types contain no lower-case word before a parenthesis: layouts write
# T(8,128).
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (?P<type>.*?) (?P<opcode>[a-z][a-z0-9-]*)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) (?:\(.*\) -> .*)?\{$")
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<dims>[\d,]*)\]")
_OP_NAME = re.compile(r'op_name="(?P<name>[^"]*)"')
_CHANNEL = re.compile(r"channel_id=(?P<id>\d+)")
_PARTITIONS = re.compile(r"num_partitions=(?P<count>\d+)")
# Groups of devices: lists, an iota of groups and members, or axes of a mesh, whole or in parts.
_GROUPS_LISTED = re.compile(r"replica_groups=\{\{(?P<first>[\d,]+)\}")
_GROUPS_IOTA = re.compile(r"replica_groups=\[(?P<groups>\d+),(?P<members>\d+)\]")
_GROUPS_NAMED = re.compile(r"replica_groups=mesh\[(?P<mesh>[^\]]*)\] \{(?P<axes>[^}]*)\}")
# A transfer to the host, which exchanges the array with hosts of other slices: the numbers of the slices ({1,2} or
# {1:4}) and the operation.
_BETWEEN_SLICES = re.compile(
    r'_xla_megascale_target="\{(?P<slices>[^}]*)\}.*?_xla_megascale_transfer_type="(?P<kind>\w+)"'
)
# TPU compilers use this name for a fusion of an all-reduce with the slice that a device keeps.
_FUSED_REDUCE_SCATTER = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation in the text of a program. Inside a loop it counts once.

    Attributes:
      kind: one of `KINDS`; a fusion that reduces and keeps a slice is a `reduce-scatter`.
      arrays: dtype and shape of the arrays that a device holds afterwards.
      op_name: the operation of the traced program that it implements; "" if unknown.
      devices: number of devices that take part.
      fused: a fused `reduce-scatter`, whose `arrays` are the reduced ones, of which a device keeps a slice.
      between_slices: whether TPU slices exchange the arrays over the network of the data center; `devices` then is the
        number of slices.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    op_name: str
    devices: int = 1
    fused: bool = False
    between_slices: bool = False

    @property
    def num_bytes(self) -> int:
        """The size of `arrays` in bytes."""
        return sum(_bits(dtype) * math.prod(shape) for dtype, shape in self.arrays) // 8

    @property
    def sent_bytes(self) -> int:
        """The number of bytes that a device sends around a ring. No other algorithm sends fewer.

        Reducing n arrays of b bytes, or gathering n parts of b / n bytes, sends (n - 1) / n * b. An all-reduce does
        both.
        """
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.num_bytes
        whole = self.num_bytes
        if self.kind == "reduce-scatter" and not self.fused:
            whole *= self.devices
        once = whole * (self.devices - 1) // self.devices
        return 2 * once if self.kind == "all-reduce" else once


def find_collectives(text: str) -> list[Collective]:
    """Finds all collectives in the HLO text of a program (`jax.stages.Compiled.as_text()`), in order.

    An asynchronous collective counts where it starts. A collective in a fusion or an asynchronous wrapper counts in the
    computation that these call, which the text contains once. TPU compilers can split a collective into pieces that
    they fuse with other computations; the pieces have the same channel and count once. An exchange between slices
    is a transfer to the host and back, and counts where the chip sends.
    """
    found, computation, channels = [], "", set()
    partitions = _PARTITIONS.search(text)
    partitions = int(partitions["count"]) if partitions else 1
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header["name"]
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            continue
        if instruction["opcode"] == "send" and (transfer := _BETWEEN_SLICES.search(line)):
            found.append(_between_slices(instruction["type"], transfer, line))
        kind, starts, _ = instruction["opcode"].partition("-start")
        if kind not in KINDS:
            continue
        channel = _CHANNEL.search(line)
        if channel and "fus" in computation:
            if (kind, channel["id"]) in channels:
                continue
            channels.add((kind, channel["id"]))
        arrays = _arrays(instruction["type"])
        if starts:
            arrays = _results_of_start(kind, arrays)
        fused = kind == "all-reduce" and computation.startswith(_FUSED_REDUCE_SCATTER)
        found.append(
            Collective(
                kind="reduce-scatter" if fused else kind,
                arrays=arrays,
                op_name=_op_name(line),
                devices=_group_size(line, partitions),
                fused=fused,
            )
        )
    return found


def count_collectives(text: str) -> dict[str, int]:
    """The number of collectives of each kind in the HLO text of a program, without kinds that do not occur."""
    return dict(Counter(collective.kind for collective in find_collectives(text)))


def _between_slices(sent: str, transfer: re.Match, line: str) -> Collective:
    """The collective of hosts that a chip sends an array to."""
    slices = 0
    for part in transfer["slices"].split(","):
        first, _, last = part.partition(":")
        slices += int(last) - int(first) + 1 if last else 1
    kind = transfer["kind"].lower().replace("_", "-")
    return Collective(kind, _arrays(sent)[:1], _op_name(line), devices=slices, between_slices=True)


def _op_name(line: str) -> str:
    name = _OP_NAME.search(line)
    return name["name"] if name else ""


def _group_size(line: str, partitions: int) -> int:
    """The number of devices that take part; all of them if the text does not say."""
    if listed := _GROUPS_LISTED.search(line):
        return listed["first"].count(",") + 1
    if iota := _GROUPS_IOTA.search(line):
        return int(iota["members"])
    if named := _GROUPS_NAMED.search(line):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named["mesh"])}
        # A part of an axis has its own size: 'axis':(devices before it)size.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named["axes"])
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    return partitions


def _arrays(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (array["dtype"], tuple(int(extent) for extent in array["dims"].split(",") if extent))
        for array in _ARRAY.finditer(text)
    )


def _results_of_start(kind: str, arrays):
    """The type of an asynchronous all-reduce is its result; those of others have operands, results and contexts."""
    if kind == "all-reduce":
        return arrays
    data = [(dtype, shape) for dtype, shape in arrays if (dtype, shape) != ("u32", ())]
    return tuple(data[len(data) // 2 :])


def _bits(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return 8 if bits is None else int(bits[0])  # pred is a byte
