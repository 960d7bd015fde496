"""The machine that a row is measured on, and its kind: rows of different kinds are different results."""

import os
import pathlib
import platform

_CPUINFO = pathlib.Path("/proc/cpuinfo")

# Instruction sets that decide how fast convolutions and matrix products can be, as Linux names them.
_INSTRUCTION_SETS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "sve",
    "bf16",
)  # fmt: skip

#: The kinds of machine, the best first, and the instruction set that each needs.
KINDS = {
    "AMX": "amx_bf16",
    "AVX-512 with bfloat16": "avx512_bf16",
    "AVX-512": "avx512f",
    "AVX2": "avx2",
}


def describe() -> str:
    """Describes the processor, its cores, the memory and the system, without the host name."""
    model = _field("model name") or platform.machine()
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {gigabytes:.0f} GiB, {platform.system()}"


def describe_flags() -> str:
    """Returns the names of everything this processor can do; an empty text if the system does not list them."""
    return _field("flags") or _field("Features")


def instruction_sets(flags: str | None = None) -> list[str]:
    """Returns the instruction sets of this processor that matter here.

    Args:
      flags: names separated by spaces (default: those of this processor).
    """
    found = (describe_flags() if flags is None else flags).split()
    return [name for name in _INSTRUCTION_SETS if name in found]


def kind(found: list[str]) -> str:
    """Returns the kind of a machine with these instruction sets."""
    return next((name for name, needed in KINDS.items() if needed in found), platform.machine())


def _field(name: str) -> str:
    """Returns a field of the first processor in /proc/cpuinfo; an empty text if it has none."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
