"""The page of `benchmarks.gpu`, and the checks that its results must pass."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gpu_specs import dense_bf16_peak

# The largest difference between float32 results of the GPU and of the processor: of logits relative to the largest
# one, and of gradients one minus the cosine of the angle between them.
TOLERANCE = 1e-4
_TERA, _GIB = 1e12, 2**30
OURS = "deeplab_jax"


def render(found: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Returns the page in Markdown, and a line per check that does not hold."""
    parts, failed = found["parts"], []
    facts = next((sides[OURS]["facts"] for sides in parts.values() if "device" in sides[OURS]["facts"]), {})
    device = facts.get("device", "unknown device")
    peak = dense_bf16_peak(device)
    versions = {name: sides["versions"] for part in parts.values() for name, sides in part.items()}
    sections = [f"# {device}\n", _environment(found, versions, peak)]
    if "equality" in parts:
        sections.append(_equality(parts["equality"][OURS]["facts"]["differences"], failed))
    steps = {name.removeprefix("step/"): part for name, part in parts.items() if name.startswith("step/")}
    if steps:
        sections += [_steps(steps, peak), _convolutions(steps)]
    if "infer" in parts:
        sections.append(_infer(parts["infer"]))
    if "resume" in parts:
        sections.append(_resume(parts["resume"][OURS]["facts"], failed))
    for name, part in parts.items():
        failed += _different_work(name, part)
    sections += [f"Left out: {name}: {reason}.\n" for name, reason in found["left_out"].items()]
    return "\n".join(sections), failed


def _environment(found: Mapping[str, Any], versions: Mapping[str, Mapping[str, str]], peak: float | None) -> str:
    lines = [f"- {name}: " + ", ".join(f"{key} {value}" for key, value in of.items()) for name, of in versions.items()]
    lines.append(f"- {found['machine']}; commit {found['commit']}, {found['date']}, {found['seconds']:.0f} seconds")
    lines.append(f"- dense bfloat16 peak: {f'{peak:g} TFLOP/s' if peak else 'not in the table of gpu_specs.py'}")
    if found["toy"]:
        lines.append("- tiny sizes: the times mean nothing")
    return "\n".join(lines) + "\n"


def _equality(differences: Mapping[str, Mapping[str, float]], failed: list[str]) -> str:
    rows = [("network", "logits, relative", "gradient, 1 - cosine")]
    for network, values in differences.items():
        rows.append((network, *(f"{values[name]:.1e}" for name in ("logits", "gradient"))))
        failed += [
            f"float32 {name} of {network} differ from the processor's by {value:.1e}, more than {TOLERANCE:.0e}"
            for name, value in values.items()
            if not value <= TOLERANCE
        ]
    return _table("float32 at the highest precision, compared with the processor", rows)


def _steps(steps: Mapping[str, Mapping[str, Any]], peak: float | None) -> str:
    rows = [("network", "batch", "", "ms per step", "images/s", "TFLOP/s", "share", "peak memory, GiB")]
    for network, sides in steps.items():
        batch = sides[OURS]["facts"]["batch"]
        work = sides[OURS]["multiply_adds"]["steps"]
        count = sides[OURS]["facts"]["steps"]
        for name, side in sides.items():
            seconds = statistics.median(side["seconds"]["steps"])
            rate = 2 * work / seconds / _TERA
            cells = f"{1e3 * seconds / count:.1f}", f"{count * batch[0] / seconds:.0f}", f"{rate:.1f}"
            share = f"{100 * rate / peak:.1f} %" if peak else "-"
            shape = "x".join(map(str, batch[:3]))
            rows.append((network, shape, name, *cells, share, f"{side['memory'] / _GIB:.2f}"))
    return _table("Train steps in bfloat16, on a batch that is on the device; share of the dense peak", rows)


def _convolutions(steps: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [("network", "cuDNN convolutions by layout", "transposes of activations, MB", "of kernels, MB")]
    for network, sides in steps.items():
        found = sides[OURS]["facts"]["convolutions"]
        layouts = ", ".join(f"{count} {layout}" for layout, count in found["layouts"].items()) or "none"
        moved = (found["transposed_activations"], found["transposed_kernels"])
        rows.append((network, layouts, *(f"{each['count']}, {each['bytes'] / 1e6:.1f}" for each in moved)))
    return _table("Our compiled train steps", rows)


def _infer(sides: Mapping[str, Any]) -> str:
    rows = [("network and batch", *(f"{name}, images/s" for name in sides))]
    batches = sides[OURS]["facts"]["batches"]
    for name, count in batches.items():
        images = count * int(name.rpartition(" ")[2])
        rates = (images / statistics.median(side["seconds"][name]) for side in sides.values())
        rows.append((name, *(f"{rate:.0f}" for rate in rates)))
    return _table("Labels in bfloat16, from images on the device", rows)


def _resume(facts: Mapping[str, Any], failed: list[str]) -> str:
    same = facts["differing_arrays"] == 0 and facts["same_log"]
    if not same:
        failed.append(
            f"a killed training ends differently: {facts['differing_arrays']} of {facts['arrays']} arrays differ"
            + ("" if facts["same_log"] else ", and so does the metrics log")
        )
    return (
        f"## Killed and continued\n\nA training of {facts['steps']} steps was killed with the checkpoint of step "
        f"{facts['killed_at_step']} and continued: {facts['differing_arrays']} of {facts['arrays']} arrays differ from "
        f"an uninterrupted run.\n"
    )


def _different_work(part: str, sides: Mapping[str, Any]) -> Iterator[str]:
    """Says where PyTorch's facts differ from ours: the sizes of networks and batches."""
    ours = sides[OURS]["facts"]
    for name, side in sides.items():
        for fact in ours.keys() & side["facts"].keys():
            if side["facts"][fact] != ours[fact]:
                yield f"{part}: {fact} is {ours[fact]} in {OURS} and {side['facts'][fact]} in {name}"


def _table(title: str, rows: list[tuple[str, ...]]) -> str:
    head, *rest = ("| " + " | ".join(row) + " |" for row in rows)
    return f"## {title}\n\n" + "\n".join([head, "|" + "---|" * len(rows[0]), *rest]) + "\n"
