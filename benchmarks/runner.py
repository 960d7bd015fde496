"""Runs the two sides of a row in turn, ours, peer, ours, peer, each in a process of its own, and compares them.

Machines are noisy, and noise comes in stretches: a pair's two processes run one after the other, so that the ratio of
a pair says more than either of its times. Nothing here imports a framework.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.rows import CEILING, Row, Side
from benchmarks.worker import STARTED

CHECKOUT = pathlib.Path(__file__).parents[1]

# Floating-point operations of a multiply-add.
_FLOP = 2


class WorkerError(Exception):
    """A worker could not do its task; the message is one line."""


def run_worker(
    side: Side,
    pythons: Mapping[str, str],
    *,
    repetitions: int = 1,
    quick: bool = False,
    folder: pathlib.Path,
    pair_folder: pathlib.Path,
    options: Mapping[str, Any] | None = None,
    timeout: float = 7200.0,
    checkout: pathlib.Path = CHECKOUT,
) -> dict[str, Any]:
    """What the worker printed.

    Args:
      side: the process.
      pythons: the interpreter of each environment.
      repetitions: of the work, after its warm-up.
      quick: small pictures.
      folder: of the row.
      pair_folder: of the pair.
      options: more for the worker, from the command line.
      timeout: seconds after which the process is ended.
      checkout: where the module is found.

    Raises:
      WorkerError: the environment is missing, or the process fails, takes too long or prints no result.
    """
    task = dict(side.task) | dict(options or {})
    task |= {"repetitions": repetitions, "quick": quick, "folder": str(folder), "pair_folder": str(pair_folder)}
    command = [pythons[side.python], "-m", side.module, json.dumps(task)]
    # Unfiltered, a traceback of JAX ends with the error, not with a remark about itself.
    environment = os.environ | {"JAX_TRACEBACK_FILTERING": "off"} | dict(side.environment)
    environment[STARTED] = repr(time.time())
    try:
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except OSError as error:
        raise WorkerError(f"{side.name}: {pythons[side.python]} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise WorkerError(f"{side.name}: {side.module} took longer than {timeout:.0f} s") from None
    if done.returncode < 0:
        raise WorkerError(f"{side.name}: {side.module} was ended by signal {-done.returncode}; 9 may be want of memory")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        raise WorkerError(f"{side.name}: {side.module} failed: {last}")
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise WorkerError(f"{side.name}: {side.module} printed no result") from None


def measure_row(
    row: Row,
    pythons: Mapping[str, str],
    *,
    pairs: int,
    repetitions: int | None = None,
    quick: bool = False,
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
    checkout: pathlib.Path = CHECKOUT,
) -> dict[str, Any]:
    """Runs a row's pairs and returns its entry in the results.

    Args:
      row: what is compared.
      pythons: the interpreter of each environment.
      pairs: how often both sides run.
      repetitions: of a process; default: the row's.
      quick: small pictures.
      options: more for the workers, from the command line.
      say: is told what each process took.
      checkout: where the workers' modules are found.

    Raises:
      WorkerError: a worker fails, or the two sides do not do the same work.
    """
    sides = {"ours": row.ours} | ({"peer": row.peer} if row.peer else {})
    if row.peer_first:
        sides = dict(reversed(sides.items()))
    if row.ceiling:
        sides["ceiling"] = CEILING
    load = os.getloadavg()[0]
    runs = {name: [] for name in sides}
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as temporary:
        folder = pathlib.Path(temporary)
        common = {"quick": quick, "folder": folder, "options": options, "checkout": checkout}
        if row.prepare:
            run_worker(row.prepare, pythons, pair_folder=folder, **common)
        for pair in range(pairs):
            pair_folder = folder / f"pair{pair}"
            pair_folder.mkdir()
            for name, side in sides.items():
                result = run_worker(
                    side,
                    pythons,
                    repetitions=repetitions or row.repetitions,
                    pair_folder=pair_folder,
                    **common,
                )
                runs[name].append(result)
                medians = ", ".join(f"{key} {_time(times)}" for key, times in list(result["seconds"].items())[:3])
                say(f"{row.key} pair {pair + 1} of {pairs}: {side.name}: {medians}")
    return compare(row, runs, quick=quick) | {"load": load}


def compare(row: Row, runs: Mapping[str, Sequence[Mapping[str, Any]]], *, quick: bool = False) -> dict[str, Any]:
    """A row's entry in the results, from what its processes printed.

    Args:
      row: what is compared.
      runs: the results of `ours`, of `peer` and `ceiling` if there are any, pair by pair.
      quick: small pictures.

    Raises:
      WorkerError: the two sides state different facts, or measure different things.
    """
    ours, peers = runs["ours"], runs.get("peer", ())
    for one, other in zip(ours, peers, strict=False):
        for fact in one["facts"].keys() & other["facts"].keys():
            if one["facts"][fact] != other["facts"][fact]:
                raise WorkerError(
                    f"the sides do different work: {fact} is {one['facts'][fact]} in {row.ours.name} "
                    f"and {other['facts'][fact]} in {row.peer.name}"
                )
    names = list(ours[0]["seconds"])
    if peers and set(names) != set(peers[0]["seconds"]):
        raise WorkerError(f"the sides measure different things: {names} and {list(peers[0]['seconds'])}")
    entry = {
        "work": row.quick_work if quick else row.work,
        "ours": row.ours.name,
        "peer": row.peer.name if row.peer else None,
        "goal": row.goal,
        "pairs": len(ours),
        "measurements": {name: _compare_one(name, runs) for name in names},
        "memory": _memory(ours, peers),
        "ceiling": _ceiling(runs.get("ceiling", ())),
        "versions": {name: results[0]["versions"] for name, results in runs.items() if name != "ceiling"},
    }
    return entry | {"machine": machine(), "commit": commit(), "date": datetime.date.today().isoformat()}


def _compare_one(name: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    times = {side: [result["seconds"][name] for result in runs[side]] for side in ("ours", "peer") if side in runs}
    medians = {side: [statistics.median(seconds) for seconds in pairs] for side, pairs in times.items()}
    result = {side: _spread([second for seconds in pairs for second in seconds]) for side, pairs in times.items()}
    if "peer" in medians:
        ratios = [ours / peer for ours, peer in zip(medians["ours"], medians["peer"], strict=True)]
        result["ratio"] = _spread(ratios) | {"pairs": ratios}
    multiply_adds = runs["ours"][0]["multiply_adds"].get(name)
    if multiply_adds:
        work = _FLOP * multiply_adds / 1e9
        result["gflop"] = work
        result["gflop_per_second"] = {side: work / statistics.median(values) for side, values in medians.items()}
        if "ceiling" in runs:
            # The limit of the same pair: a busy machine lowers both.
            limits = [result["facts"]["gflop_per_second"] for result in runs["ceiling"]]
            result["share"] = _spread(
                [work / seconds / limit for seconds, limit in zip(medians["ours"], limits, strict=True)]
            )
    return result


def _memory(ours: Sequence[Mapping[str, Any]], peers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    sides = {"ours": ours} | ({"peer": peers} if peers else {})
    peaks = {side: statistics.median(result["memory"] for result in results) for side, results in sides.items()}
    if not all(peaks.values()):
        return {}
    return peaks | ({"ratio": peaks["ours"] / peaks["peer"]} if peers else {})


def _ceiling(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: _spread([result["facts"][name] for result in runs]) for name in (runs[0]["facts"] if runs else ())}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _time(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.4g} s"


def machine() -> str:
    """The processor, its cores, the memory and the system; no name of a host."""
    model, cpuinfo = platform.machine(), pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {gigabytes:.0f} GiB, {platform.system()}"


def commit() -> str:
    """The checkout's commit, with a + if the package differs from it."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "-s", "deeplab_jax") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
