"""The code that all workers share: reads a task, repeats work to completion, and prints one line of JSON.

A worker is a module that runs as `python -m MODULE TASK` in the checkout, with the Python of its own environment, so
this module imports only the standard library.
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

# When the parent started this process, in seconds since the epoch.
STARTED = "BENCHMARK_STARTED"

# Set if two processes take turns, and the line that asks for a turn. A line on the input grants it.
TURNS, ASK = "BENCHMARK_TURNS", "benchmark: my turn?"


def read_task() -> dict[str, Any]:
    """Reads the task on the command line. Its fields are those of `rows.Side.task` and those that the parent adds:

    `repetitions`, `quick` (use small images), `folder` (of the row, for files prepared once) and `pair_folder`.
    """
    return json.loads(sys.argv[1])


def repeat(work: Callable[[], Any], *, warm_up: int, repetitions: int) -> list[float]:
    """Returns the seconds of each repetition after the warm-up. `work` returns when everything it started is done.

    If processes take turns, each repetition waits for its turn.
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
    """Returns the seconds since the parent started this process."""
    return time.time() - float(os.environ[STARTED])


def peak_memory() -> int:
    """Returns the peak resident set of this process so far, in bytes."""
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
      seconds: seconds per repetition, by the name of the measurement.
      packages: packages whose versions are recorded.
      memory: peak in bytes (default: the peak of this process); 0 if it means nothing, for work in other processes.
      multiply_adds: multiply-adds per repetition, by the name of the measurement.
      facts: values that both sides of a row must agree on, such as the number of parameters.
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
