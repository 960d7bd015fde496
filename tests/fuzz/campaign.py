"""Sends damaged files to a worker process and counts what happens."""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

from tests.fuzz.worker import SECONDS

#: How many inputs each reader gets, relative to others. Tracing a network takes a second, so files that describe
#: networks get fewer.
WEIGHTS = {
    "torch": 30, "safetensors": 10, "keras": 10, "tflite": 10, "tensorflow": 10, "bundle": 2, "workdir": 4,
    "images": 10, "masks": 6, "annotations": 6, "exports": 12, "archives": 10,
}  # fmt: skip
_START = 240  # seconds until the worker has read all valid files; a busy machine compiles slowly


@dataclasses.dataclass(frozen=True)
class Failure:
    """An input that ended neither in a result nor in one line within the budget. `target` and `seed` repeat it."""

    reader: str
    target: int
    seed: int
    outcome: str
    message: str


@dataclasses.dataclass
class Report:
    """Numbers of inputs by reader and outcome, the failures, and the costliest inputs.

    Attributes:
      counts: by (reader, outcome): "read", "refused", "traceback" or "beyond budget".
      failures: the inputs of the last two outcomes.
      seconds: longest time of an input.
      peak: most memory of an input, in bytes.
    """

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    failures: list[Failure] = dataclasses.field(default_factory=list)
    seconds: float = 0
    peak: int = 0

    def total(self, outcome: str | None = None) -> int:
        """Number of inputs, or of those with this outcome."""
        return sum(count for (_, found), count in self.counts.items() if outcome in (None, found))


def run(inputs: int, *, seed: int = 0, readers: Sequence[str] = (), only: tuple[int, int] | None = None) -> Report:
    """Reads damaged files.

    Args:
      inputs: how many.
      seed: chooses them.
      readers: names of readers; default: all.
      only: a target and a seed to repeat, instead.
    """
    report, rng = Report(), random.Random(seed)
    with _Worker() as worker:
        indices = [i for i, reader in enumerate(worker.readers) if not readers or reader in readers]
        share = collections.Counter(worker.readers)
        weights = [WEIGHTS[worker.readers[i]] / share[worker.readers[i]] for i in indices]
        for number in range(inputs):
            target, input_seed = only or (rng.choices(indices, weights)[0], seed * 1_000_003 + number)
            answer = worker.ask(target, input_seed)
            reader = worker.readers[target]
            report.counts[reader, answer["outcome"]] += 1
            report.seconds, report.peak = max(report.seconds, answer["seconds"]), max(report.peak, answer["peak"])
            if answer["outcome"] not in ("read", "refused"):
                report.failures.append(Failure(reader, target, input_seed, answer["outcome"], answer["message"]))
    return report


class _Worker:
    """The worker process, started again when it dies or hangs."""

    def __enter__(self) -> "_Worker":
        self._stack = contextlib.ExitStack()
        self.readers = self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        self._stack.close()

    def ask(self, target: int, seed: int) -> dict:
        self._process.stdin.write(f"{target} {seed}\n")
        self._process.stdin.flush()
        line = self._read_line(SECONDS + 10)
        if line:
            return json.loads(line)
        code = self._process.poll()
        outcome = "beyond budget" if code is None else "traceback"
        self._stop()
        self._log.seek(0)
        message = f"the worker hangs in native code or died ({code}): {self._log.read()[-2000:]}"
        self._start()
        return {"outcome": outcome, "seconds": SECONDS, "peak": 0, "message": message}

    def _start(self) -> list[str]:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._log = self._stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        root = pathlib.Path(__file__).parents[2]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=root,
            env=environment,
        )
        line = self._read_line(_START)
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the worker does not start: {self._log.read()[-3000:]}")
        return json.loads(line)

    def _read_line(self, seconds: int) -> str:
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else ""

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def lines(report: Report) -> Iterator[str]:
    """Yields the lines that the command prints."""
    for reader in sorted({reader for reader, _ in report.counts}):
        counts = {
            outcome: report.counts[reader, outcome] for outcome in ("read", "refused", "traceback", "beyond budget")
        }
        yield f"{reader:12} " + "  ".join(f"{outcome} {count:6,}" for outcome, count in counts.items())
    yield (
        f"{report.total():,} fuzzed inputs: {report.total('traceback'):,} tracebacks, "
        f"{report.total('beyond budget'):,} beyond budget; at most {report.seconds:.1f} s and "
        f"{report.peak / 1e6:.0f} MB each"
    )
