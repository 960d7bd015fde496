"""The results on disk: `results.json`, one entry per row and kind of machine, and `RESULTS.md`, the rendered page."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.rows import SUITES

JSON_FILE, TABLE_FILE = "results.json", "RESULTS.md"

_HEAD = """# Benchmark results

`python -m benchmarks` writes this page from `results.json`. [Benchmarks](README.md) explains what is measured and how
to repeat it. Each question has one table per kind of machine, with the newest run of each row.

- **Ratio** is our time / the peer's time; below 1 we are faster. It is the median (least–most) over repetitions that
  two processes took in turn, or over pairs of processes that ran one after the other.
- **Goal** is the largest ratio that we aim at. A goal that is stated for another kind of machine is in brackets.
- **Times** are median (least–most) of all repetitions after the warm-up.
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
    "step": "How long does a train step take?",
    "infer": "How long does a prediction take?",
    "export": "How fast is an exported network in its own runtime?",
    "input": "How fast does the input pipeline deliver batches?",
    "metric": "How much time does the confusion matrix take?",
    "startup": "How long does a start take?",
    "ops": "How much faster is each operation?",
}
# The kind of rows that were measured before it was recorded.
_UNKNOWN = "kind not recorded"


def read(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Reads the entries of a folder's `results.json`. Returns an empty dict if there is no file."""
    path = folder / JSON_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def update(folder: pathlib.Path, key: str, entry: Mapping[str, Any]) -> None:
    """Replaces the result of a row on this kind of machine, and writes both files.

    Results of other kinds of machine are kept. A result whose kind was not recorded is replaced if its machine has the
    same description.
    """
    entries = {
        name: old
        for name, old in read(folder).items()
        if not (row_key(name) == key and "kind" not in old and old["machine"] == entry["machine"])
    }
    write(folder, entries | {f"{key} [{entry['kind']}]": dict(entry)})


def write(folder: pathlib.Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes both files."""
    entries = dict(sorted(entries.items()))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_FILE).write_text(json.dumps(entries, indent=1) + "\n")
    (folder / TABLE_FILE).write_text(render(entries))


def row_key(name: str) -> str:
    """Returns the key of the row that an entry of `results.json` belongs to."""
    return name.partition(" [")[0]


def render(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Renders the Markdown page: a table per question and kind of machine, then details, machines and versions."""
    parts, ordered = [_HEAD], {}
    for suite in SUITES:
        rows = {name: entry for name, entry in entries.items() if name.split("/")[0] == suite}
        if rows:
            parts.append(f"## {_TITLES[suite]}\n")
            for kind in dict.fromkeys(entry.get("kind", _UNKNOWN) for entry in rows.values()):
                of_kind = {name: entry for name, entry in rows.items() if entry.get("kind", _UNKNOWN) == kind}
                machines = "; ".join(dict.fromkeys(entry["machine"] for entry in of_kind.values()))
                parts.append(f"### {kind}: {machines}\n")
                parts += _suite_tables(of_kind)
            parts.append(_works(rows))
            ordered |= rows
    notes = list(dict.fromkeys(_note(entry) for entry in ordered.values()))
    lines = [_line(("row", "GFLOP/s, ours / peer's", "share", "measured")), _line(["---"] * 4)]
    for key, entry in ordered.items():
        lines.append(_detail_line(key, entry, notes.index(_note(entry)) + 1))
    parts += [_DETAILS, "\n".join(lines) + "\n", "### Machines and versions\n"]
    parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)) + "\n")
    return "\n".join(parts)


def _suite_tables(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Renders one table, and one more for each row that has many measurements."""
    lines, parts = [], []
    for name, entry in rows.items():
        if len(entry["measurements"]) == 1:
            (measurement,) = entry["measurements"].values()
            ratio, *times = _comparison(measurement)
            work = f"`{_short(name)}`"
            lines.append(
                _line(
                    [ratio, _goal(entry), work, entry["peer"] or "-", *times, _memory(entry["memory"]), entry["date"]]
                )
            )
        else:
            parts.append(f"Compared with {entry['peer'] or 'nothing'}, {entry['date']}:\n")
            table = [_line(("ratio", "operation", "deeplab_jax", "peer's", "GFLOP/s")), _line(["---"] * 5)]
            for operation, measurement in entry["measurements"].items():
                ratio, *times = _comparison(measurement)
                table.append(_line([ratio, operation, *times, _rates(measurement)]))
            parts.append("\n".join(table) + "\n")
    if lines:
        head = ("ratio", "goal", "work", "peer", "deeplab_jax", "peer's", "memory", "measured")
        parts.insert(0, "\n".join([_line(head), _line(["---"] * len(head)), *lines]) + "\n")
    return parts


def _works(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Renders what the short names of a suite's works mean. Rows of one name can differ, in the dtype for example."""
    works: dict[str, list[str]] = {}
    for name, entry in rows.items():
        texts = works.setdefault(_short(name), [])
        if entry["work"] not in texts:
            texts.append(entry["work"])
    return "\n".join(f"- `{short}`: {text}" for short, texts in works.items() for text in texts) + "\n"


def _short(name: str) -> str:
    """Returns the name of the work in the key of a row, suite/work/peer."""
    return name.split("/")[1]


def _comparison(measurement: Mapping[str, Any]) -> list[str]:
    return [_ratio(measurement.get("ratio")), _times(measurement["ours"]), _times(measurement.get("peer"))]


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
    found = f" ({', '.join(entry['instruction_sets'])})" if entry.get("instruction_sets") else ""
    return f"{entry['machine']}{found}; load {entry['load']:.1f} before the row. {versions}{limits}"


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
    goal, claims = f"{entry['goal']:g}" + ("" if entry["peer"] else " s"), entry.get("claims", ())
    return goal if not claims or entry.get("kind") in claims else f"({goal} on {' or '.join(claims)})"


def _memory(memory: Mapping[str, float]) -> str:
    sizes = " / ".join(f"{memory[side] / 2**30:.2f}" for side in ("ours", "peer") if side in memory)
    return f"{sizes} GiB" + (f", **{memory['ratio']:.2f}**" if "ratio" in memory else "") if sizes else ""


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"
