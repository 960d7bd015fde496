"""What every worker process shares: it reads a task, repeats work to completion, and prints one line of JSON.

A worker is a module that is run as `python -m MODULE TASK` from the checkout, by the Python of its own environment, so
nothing here may import more than the standard library.
"""

import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

# When the parent started this process: seconds since the epoch.
STARTED = "BENCHMARK_STARTED"

# Set where two processes take turns, and the line by which one asks for its turn; a line on its input gives it.
TURNS, ASK = "BENCHMARK_TURNS", "benchmark: my turn?"


def read_task() -> dict[str, Any]:
    """The task on the command line. Its fields are those of `rows.Side.task`, plus what the parent adds:

    `repetitions`, `quick` (small images), `folder` (of the row, for what is prepared once) and `pair_folder`.
    """
    return json.loads(sys.argv[1])


def repeat(work: Callable[[], Any], *, warm_up: int, repetitions: int) -> list[float]:
    """Seconds of each repetition after the warm-up; `work` returns when everything it started is done.

    Where processes take turns each repetition waits for its own.
    """
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(repetitions):
        if TURNS in os.environ:
            print(ASK, flush=True)
            sys.stdin.readline()
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def seconds_since_start() -> float:
    """Since the parent started this process."""
    return time.time() - float(os.environ[STARTED])


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(
    seconds: dict[str, list[float]],
    *,
    packages: tuple[str, ...],
    memory: int | None = None,
    multiply_adds: dict[str, int] | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Prints the result as the last line of the output.

    Args:
      seconds: of each repetition, by the name of what was measured.
      packages: whose versions count.
      memory: peak in bytes; default: of this process. 0 if it means nothing, as where work is in other processes.
      multiply_adds: of one repetition, by the name of what was measured.
      facts: what both sides of a row must agree on, such as the number of parameters.
    """
    versions = {name: importlib.metadata.version(name) for name in packages}
    result = {
        "seconds": seconds,
        "memory": peak_memory() if memory is None else memory,
        "multiply_adds": multiply_adds or {},
        "facts": facts or {},
        "versions": {"python": platform.python_version()} | versions,
    }
    print(json.dumps(result))
