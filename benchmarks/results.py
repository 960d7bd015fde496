"""The results on disk: `results.json`, an entry a row, and `RESULTS.md`, the table made of it."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.rows import SUITES

JSON_FILE, TABLE_FILE = "results.json", "RESULTS.md"

_HEAD = """# Benchmark results

Written by `python -m benchmarks` from `results.json`; see [README.md](README.md) for what is measured and how to repeat
it. Times are median (least - most) of all repetitions after the warm-up. A ratio is ours / peer: the median (least -
most) over repetitions that two processes took in turn, or, where the last column counts pairs alone, over pairs of
processes that ran one after the other; below 1 ours is faster. Memory is the process' largest resident set, ratio ours
/ peer. GFLOP/s count the multiply-adds of the network's convolutions, tap by tap, twice, and of a train step three
times (forward, input gradients, weight gradients): no resizing, no recomputation. Of large 3x3 convolutions ours makes
four multiplications for nine of these (`deeplab_jax/ops/winograd.py`; rows of its commit and later). The share is of
the float32 matrix product's rate, measured in the same pairs.
"""
_COLUMNS = ("work", "peer", "ours", "peer's", "ratio", "goal", "memory", "GFLOP/s", "share", "measured")


def read(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The entries of a folder's `results.json`; none if there is no file."""
    path = folder / JSON_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def update(folder: pathlib.Path, key: str, entry: Mapping[str, Any]) -> None:
    """Replaces one row, and only it, and writes both files."""
    entries = dict(sorted((read(folder) | {key: dict(entry)}).items()))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_FILE).write_text(json.dumps(entries, indent=1) + "\n")
    (folder / TABLE_FILE).write_text(render(entries))


def render(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown page of these entries: a table for each suite, and the machines and versions below."""
    notes, parts = [], [_HEAD]
    for suite in SUITES:
        rows = {key: entries[key] for key in entries if key.split("/")[0] == suite}
        if not rows:
            continue
        parts.append(f"## {suite}\n")
        lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
        for entry in rows.values():
            lines += _row_lines(entry, notes)
        parts.append("\n".join(lines) + "\n")
    parts.append("## Machines and versions\n")
    parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)) + "\n")
    return "\n".join(parts)


def _row_lines(entry: Mapping[str, Any], notes: list[str]) -> list[str]:
    note = _note(entry)
    if note not in notes:
        notes.append(note)
    lines, single = [], len(entry["measurements"]) == 1
    for name, measurement in entry["measurements"].items():
        rates = measurement.get("gflop_per_second")
        share = measurement.get("share")
        lines.append(
            _line(
                [
                    entry["work"] if single else name,
                    entry["peer"] or "-",
                    _times(measurement["ours"]),
                    _times(measurement.get("peer")),
                    _ratio(measurement.get("ratio")),
                    _goal(entry),
                    _memory(entry["memory"]) if single else "",
                    " / ".join(f"{rates[side]:.1f}" for side in ("ours", "peer") if side in rates) if rates else "",
                    f"{share['median']:.2f}" if share else "",
                    f"{entry['commit']}, {entry['date']}, {_count(entry, measurement)} [{notes.index(note) + 1}]",
                ]
            )
        )
    return lines


def _count(entry: Mapping[str, Any], measurement: Mapping[str, Any]) -> str:
    turns = len(measurement["ratio"]["pairs"]) if entry.get("in_turns") and "ratio" in measurement else 0
    return f"{entry['pairs']} pairs" + (f", {turns} turns" if turns else "")


def _note(entry: Mapping[str, Any]) -> str:
    versions = "; ".join(
        f"{entry[side]}: " + ", ".join(f"{name} {version}" for name, version in found.items())
        for side, found in entry["versions"].items()
    )
    ceiling = "; ".join(
        f"{name.replace('_per_second', '/s').replace('_', ' ')} {spread['median']:.1f} "
        f"({spread['min']:.1f} - {spread['max']:.1f})"
        for name, spread in entry["ceiling"].items()
    )
    limits = f". Limits: {ceiling}" if ceiling else ""
    return f"{entry['machine']}; load {entry['load']:.1f} before the row. {versions}{limits}"


def _times(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return ""
    factor, unit = (1, "s") if spread["median"] >= 1 else (1000, "ms")
    median, least, most = (f"{factor * spread[name]:.3g}" for name in ("median", "min", "max"))
    return f"{median} {unit} ({least} - {most})"


def _ratio(spread: Mapping[str, float] | None) -> str:
    return f"**{spread['median']:.3g}** ({spread['min']:.3g} - {spread['max']:.3g})" if spread else ""


def _goal(entry: Mapping[str, Any]) -> str:
    if entry["goal"] is None:
        return ""
    return f"at most {entry['goal']:g}" + ("" if entry["peer"] else " s")


def _memory(memory: Mapping[str, float]) -> str:
    sizes = " / ".join(f"{memory[side] / 2**30:.2f}" for side in ("ours", "peer") if side in memory)
    return f"{sizes} GiB" + (f", **{memory['ratio']:.2f}**" if "ratio" in memory else "") if sizes else ""


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"
