"""The results on disk: `results.json`, one entry per row, and `RESULTS.md`, the page rendered from it."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.rows import SUITES

JSON_FILE, TABLE_FILE = "results.json", "RESULTS.md"

_HEAD = """# Benchmark results

`python -m benchmarks` writes this page from `results.json`. [Benchmarks](README.md) explains what is measured and how
to repeat it.

- **Times** are median (least–most) of all repetitions after the warm-up.
- **Ratio** is our time / the peer's time; below 1 we are faster. It is the median (least–most) over repetitions that
  two processes took in turn, or over pairs of processes that ran one after the other.
- **Goal** is the largest ratio that we aim at.
- **Memory** is the peak resident set of our process / the peer's process.

[Details](#details) has rates, commits, dates, machines and versions.
"""
_DETAILS = """## Details

GFLOP/s count the multiply-adds of the network's convolutions, tap by tap, twice, and three times for a train step
(forward pass, input gradients, weight gradients), without resizing and recomputation. Large 3x3 convolutions of ours
need four multiplications where this counts nine (`deeplab_jax/ops/cpu/winograd.py`). The share is our rate divided by
the rate of a float32 matrix product measured in the same pairs. Numbers in brackets refer to the list of machines.
"""
_TITLES = {
    "step": "Train steps",
    "infer": "Predictions",
    "export": "Exported programs",
    "input": "Input pipelines",
    "metric": "Metrics",
    "startup": "Start-up",
    "ops": "Single operations",
}


def read(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Reads the entries of a folder's `results.json`. Returns an empty dict if there is no file."""
    path = folder / JSON_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def update(folder: pathlib.Path, key: str, entry: Mapping[str, Any]) -> None:
    """Replaces one row and writes both files."""
    entries = dict(sorted((read(folder) | {key: dict(entry)}).items()))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_FILE).write_text(json.dumps(entries, indent=1) + "\n")
    (folder / TABLE_FILE).write_text(render(entries))


def render(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Renders the Markdown page: short tables per suite, then details, machines and versions."""
    parts, ordered = [_HEAD], {}
    for suite in SUITES:
        rows = {key: entry for key, entry in entries.items() if key.split("/")[0] == suite}
        if rows:
            parts.append(f"## {_TITLES[suite]}\n")
            parts += _suite_tables(rows)
            ordered |= rows
    notes = list(dict.fromkeys(_note(entry) for entry in ordered.values()))
    lines = [_line(("row", "GFLOP/s, ours / peer's", "share", "measured")), _line(["---"] * 4)]
    for key, entry in ordered.items():
        lines.append(_detail_line(key, entry, notes.index(_note(entry)) + 1))
    parts += [_DETAILS, "\n".join(lines) + "\n", "### Machines and versions\n"]
    parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)) + "\n")
    return "\n".join(parts)


def _suite_tables(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Renders a table per work, or per peer where one row has many measurements."""
    parts, works = [], {}
    for entry in rows.values():
        if len(entry["measurements"]) == 1:
            works.setdefault(entry["work"], []).append(entry)
        else:
            parts.append(f"**Compared with {entry['peer'] or 'nothing'}**\n")
            lines = [_line(("operation", "deeplab_jax", "peer's", "ratio", "GFLOP/s")), _line(["---"] * 5)]
            for name, measurement in entry["measurements"].items():
                lines.append(_line([name, *_comparison(measurement), _rates(measurement)]))
            parts.append("\n".join(lines) + "\n")
    for work, same_work in works.items():
        parts.append(f"**{work[0].upper()}{work[1:]}**\n")
        lines = [_line(("peer", "deeplab_jax", "peer's", "ratio", "goal", "memory")), _line(["---"] * 6)]
        for entry in same_work:
            (measurement,) = entry["measurements"].values()
            lines.append(
                _line([entry["peer"] or "-", *_comparison(measurement), _goal(entry), _memory(entry["memory"])])
            )
        parts.append("\n".join(lines) + "\n")
    return parts


def _comparison(measurement: Mapping[str, Any]) -> list[str]:
    return [_times(measurement["ours"]), _times(measurement.get("peer")), _ratio(measurement.get("ratio"))]


def _detail_line(key: str, entry: Mapping[str, Any], note: int) -> str:
    rates = share = ""
    if len(entry["measurements"]) == 1:
        (measurement,) = entry["measurements"].values()
        rates, share = _rates(measurement), measurement.get("share", "")
    measured = f"{entry['commit']}, {entry['date']}, {_count(entry)} [{note}]"
    return _line([f"`{key}`", rates, f"{share['median']:.2f}" if share else "", measured])


def _rates(measurement: Mapping[str, Any]) -> str:
    rates = measurement.get("gflop_per_second") or {}
    return " / ".join(f"{rates[side]:.1f}" for side in ("ours", "peer") if side in rates)


def _count(entry: Mapping[str, Any]) -> str:
    pairs = entry["pairs"]
    text = f"{pairs} pair" if pairs == 1 else f"{pairs} pairs"
    turns = [len(each["ratio"]["pairs"]) for each in entry["measurements"].values() if "ratio" in each]
    return f"{text}, {turns[0]} turns" if entry.get("in_turns") and turns else text


def _note(entry: Mapping[str, Any]) -> str:
    versions = "; ".join(
        f"{entry[side]}: " + ", ".join(f"{name} {version}" for name, version in found.items())
        for side, found in entry["versions"].items()
    )
    ceiling = "; ".join(
        f"{name.replace('_per_second', '/s').replace('_', ' ')} {spread['median']:.1f} "
        f"({spread['min']:.1f}–{spread['max']:.1f})"
        for name, spread in entry["ceiling"].items()
    )
    limits = f". Limits: {ceiling}" if ceiling else ""
    return f"{entry['machine']}; load {entry['load']:.1f} before the row. {versions}{limits}"


def _times(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return ""
    factor, unit = (1, "s") if spread["median"] >= 1 else (1000, "ms")
    median, least, most = (f"{factor * spread[name]:.3g}" for name in ("median", "min", "max"))
    return f"{median} {unit} ({least}–{most})"


def _ratio(spread: Mapping[str, float] | None) -> str:
    if not spread:
        return ""
    least, most = f"{spread['min']:.3g}", f"{spread['max']:.3g}"
    return f"**{spread['median']:.3g}**" + (f" ({least}–{most})" if least != most else "")


def _goal(entry: Mapping[str, Any]) -> str:
    if entry["goal"] is None:
        return ""
    return f"{entry['goal']:g}" + ("" if entry["peer"] else " s")


def _memory(memory: Mapping[str, float]) -> str:
    sizes = " / ".join(f"{memory[side] / 2**30:.2f}" for side in ("ours", "peer") if side in memory)
    return f"{sizes} GiB" + (f", **{memory['ratio']:.2f}**" if "ratio" in memory else "") if sizes else ""


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"
