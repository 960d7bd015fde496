"""Runs the two sides of a row alternately, each in its own process, and compares them.

Machines are noisy, and the noise comes in stretches, so a ratio compares times that were taken right after each other.
Where a row allows it, both processes are alive at the same time and take turns. Otherwise one process runs after the
other, and their medians are compared. This module imports no framework.
"""

import contextlib
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import machine
from benchmarks.rows import CEILING, Row, Side
from benchmarks.worker import ASK, STARTED, TURNS

CHECKOUT = pathlib.Path(__file__).parents[1]

# Floating-point operations per multiply-add.
_FLOP = 2


class WorkerError(Exception):
    """A worker failed; the message is one line."""


class Worker:
    """The process of one side, from its start to its result; a context manager that ends it.

    Args:
      side: the side to run.
      pythons: the interpreter of each environment.
      repetitions: repetitions after the warm-up.
      quick: use small images.
      folder: folder of the row.
      pair_folder: folder of the pair.
      options: more options for the worker, from the command line.
      in_turns: the worker asks before each repetition.
      timeout: seconds after which the process is ended.
      checkout: folder that contains the module.

    Raises:
      WorkerError: the interpreter is missing.
    """

    def __init__(
        self,
        side: Side,
        pythons: Mapping[str, str],
        *,
        repetitions: int = 1,
        quick: bool = False,
        folder: pathlib.Path,
        pair_folder: pathlib.Path,
        options: Mapping[str, Any] | None = None,
        in_turns: bool = False,
        timeout: float = 7200.0,
        checkout: pathlib.Path = CHECKOUT,
    ):
        self._side, self._timeout, self._last = side, timeout, ""
        task = dict(side.task) | dict(options or {})
        task |= {"repetitions": repetitions, "quick": quick, "folder": str(folder), "pair_folder": str(pair_folder)}
        # Without traceback filtering, the last line of a JAX traceback is the error.
        environment = os.environ | {"JAX_TRACEBACK_FILTERING": "off"} | dict(side.environment)
        environment |= {STARTED: repr(time.time())} | ({TURNS: "1"} if in_turns else {})
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the context)
        try:
            self._process = subprocess.Popen(
                [pythons[side.python], "-m", side.module, json.dumps(task)],
                cwd=checkout,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as error:
            self._errors.close()
            raise WorkerError(f"{side.name}: {pythons[side.python]} cannot be run: {error.strerror}") from None
        self._late = threading.Event()
        self._clock = threading.Timer(timeout, self._end_late)
        self._clock.start()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._clock.cancel()
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def asks(self) -> bool:
        """Waits until the process asks for a turn. Returns False if it ended instead."""
        for line in self._process.stdout:
            if line.strip() == ASK:
                return True
            self._last = line if line.strip() else self._last
        self._process.wait()  # to the end, so that it does not free its memory during another's turn
        return False

    def take_turn(self) -> bool:
        """Lets the process run one repetition. Returns the same as `asks`."""
        with contextlib.suppress(BrokenPipeError):  # it died meanwhile; `result` raises the error
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self.asks()

    def result(self) -> dict[str, Any]:
        """Returns the result of the process, which has ended.

        Raises:
          WorkerError: it failed, took too long or printed no result.
        """
        module, code = f"{self._side.name}: {self._side.module}", self._process.wait()
        if self._late.is_set():
            raise WorkerError(f"{module} took longer than {self._timeout:.0f} s")
        if code < 0:
            raise WorkerError(f"{module} was ended by signal {-code}; 9 may mean out of memory")
        if code:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or [f"ended with code {code}"])[-1]
            raise WorkerError(f"{module} failed: {last}")
        try:
            return json.loads(self._last)
        except ValueError:
            raise WorkerError(f"{module} printed no result") from None

    def _end_late(self) -> None:
        self._late.set()
        self._process.kill()


def run_worker(side: Side, pythons: Mapping[str, str], **options: Any) -> dict[str, Any]:
    """Runs one side alone and returns its result. Arguments and errors are those of `Worker`."""
    with Worker(side, pythons, **options) as worker:
        worker.asks()
        return worker.result()


def run_in_turns(sides: Mapping[str, Side], pythons: Mapping[str, str], **options: Any) -> dict[str, dict[str, Any]]:
    """Runs several sides that take turns after their warm-ups, and returns their results."""
    with contextlib.ExitStack() as stack:
        workers, waiting = {}, []
        for name, side in sides.items():
            workers[name] = stack.enter_context(Worker(side, pythons, in_turns=True, **options))
            if not workers[name].asks():
                workers[name].result()  # it failed, so the others do not start
            waiting.append(workers[name])
        while waiting:
            waiting = [worker for worker in waiting if worker.take_turn()]
        return {name: worker.result() for name, worker in workers.items()}


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
      row: the row to measure.
      pythons: the interpreter of each environment.
      pairs: how often both sides run.
      repetitions: repetitions per process (default: the row's).
      quick: use small images.
      options: more options for the workers, from the command line.
      say: called with a line of text per process.
      checkout: folder that contains the workers' modules.

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
            arguments = common | {"repetitions": repetitions or row.repetitions, "pair_folder": pair_folder}
            in_turns = {name: side for name, side in sides.items() if row.in_turns and side is not CEILING}
            results = run_in_turns(in_turns, pythons, **arguments)
            for name, side in sides.items():
                result = results[name] if name in results else run_worker(side, pythons, **arguments)
                runs[name].append(result)
                medians = ", ".join(f"{key} {_time(times)}" for key, times in list(result["seconds"].items())[:3])
                say(f"{row.key} pair {pair + 1} of {pairs}: {side.name}: {medians}")
    return compare(row, runs, quick=quick) | {"load": load}


def compare(row: Row, runs: Mapping[str, Sequence[Mapping[str, Any]]], *, quick: bool = False) -> dict[str, Any]:
    """Returns a row's entry in the results.

    Args:
      row: the row.
      runs: the results of `ours`, and of `peer` and `ceiling` if there are any, pair by pair.
      quick: small images were used.

    Raises:
      WorkerError: the two sides report different facts, or measure different things.
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
        "claims": list(row.claims),
        "pairs": len(ours),
        "in_turns": row.in_turns,
        "measurements": {name: _compare_one(name, runs, in_turns=row.in_turns) for name in names},
        "memory": _memory(ours, peers),
        "ceiling": _ceiling(runs.get("ceiling", ())),
        "versions": {name: results[0]["versions"] for name, results in runs.items() if name != "ceiling"},
    }
    found = machine.instruction_sets()
    entry |= {"machine": machine.describe(), "kind": machine.kind(found), "instruction_sets": found}
    entry |= {"amx": "amx_bf16" in found, "bfloat16": bool({"amx_bf16", "avx512_bf16", "bf16"} & set(found))}
    return entry | {"commit": commit(), "date": datetime.date.today().isoformat()}


def _compare_one(name: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], *, in_turns: bool) -> dict[str, Any]:
    times = {side: [result["seconds"][name] for result in runs[side]] for side in ("ours", "peer") if side in runs}
    medians = {side: [statistics.median(seconds) for seconds in pairs] for side, pairs in times.items()}
    result = {side: _spread([second for seconds in pairs for second in seconds]) for side, pairs in times.items()}
    if "peer" in medians:
        paired = [sum(times[side], []) if in_turns else medians[side] for side in ("ours", "peer")]
        ratios = [ours / peer for ours, peer in zip(*paired, strict=True)]
        result["ratio"] = _spread(ratios) | {"pairs": ratios}
    multiply_adds = runs["ours"][0]["multiply_adds"].get(name)
    if multiply_adds:
        work = _FLOP * multiply_adds / 1e9
        result["gflop"] = work
        result["gflop_per_second"] = {side: work / statistics.median(values) for side, values in medians.items()}
        if "ceiling" in runs:
            # The limit measured in the same pair, since a busy machine lowers both.
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


def commit() -> str:
    """Returns the checkout's commit, with a + if the package differs from it."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "-s", "deeplab_jax") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
