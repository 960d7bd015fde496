"""Launches the local processes of a run. If one dies, reports it in one line and terminates the others.

Without the launcher, the others would wait for the dead process in a collective operation until JAX's heartbeat times
out and aborts them with a C++ stack trace. In a run on several machines each machine has its launcher: that of the dead
process acts at once, the others when their own process has aborted.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from deeplab_jax.errors import Preempted

#: What people call the signals that stop a run.
CAUSES = {"SIGTERM": "SIGTERM", "SIGINT": "Ctrl-C", "SIGHUP": "a closed terminal (SIGHUP)"}

#: The address that local runs listen on. Unlike the machine's own name it always resolves.
LOOPBACK = "127.0.0.1"

#: How to continue a run that was killed.
RESUME = "run the same command again to continue from the newest checkpoint"

_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1  # option of Linux's prctl


def local_launches(count: int) -> list[list[str]]:
    """Returns the arguments of `count` local processes that form one run, on a free port of the loopback address."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        coordinator = f"{LOOPBACK}:{probe.getsockname()[1]}"
    return [
        [f"--coordinator={coordinator}", f"--num-processes={count}", f"--process-id={index}"] for index in range(count)
    ]


def run(
    commands: Sequence[Sequence[str]], environment: dict[str, str], *, resume: str = RESUME
) -> tuple[int, str | None]:
    """Runs commands concurrently until all have exited or one has died.

    The first command inherits this process's output. The output of the others is shown only if one fails on its own.
    The commands get SIGTERM, Ctrl-C and SIGHUP from the launcher alone, with SIGTERM after the other two. A second
    Ctrl-C kills them. If the launcher itself is killed, its processes get SIGTERM (on Linux).

    Args:
      commands: one command per process.
      environment: variables added to this process's own.
      resume: how to continue, for messages.

    Returns:
      The exit code for this process, and a line to print, or None if there is nothing to add.
    """
    with contextlib.ExitStack() as stack:
        errors = [None] + [stack.enter_context(tempfile.TemporaryFile()) for _ in commands[1:]]
        processes, received = [], []

        def forward(number: int, frame: object) -> None:
            received.append(signal.Signals(number).name)
            for process in processes:
                for forwarded in dict.fromkeys((number, signal.SIGTERM)):
                    if process.poll() is None:
                        process.send_signal(forwarded)

        for name in Preempted.EXIT_CODES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` sets it
                stack.callback(signal.signal, number, signal.signal(number, forward))
        stack.callback(_kill, processes)
        for command, error in zip(commands, errors, strict=True):
            processes.append(
                subprocess.Popen(
                    command,
                    env=os.environ | environment,
                    stdout=error,
                    stderr=error,
                    preexec_fn=_end_with_parent,
                    process_group=0 if os.name == "posix" else -1,  # or a terminal would send them Ctrl-C as well
                )
            )
        code, failed = _wait(processes, received)
        if failed is None:
            return code, None
        num_waiting = _kill(processes)
        if received and code < 0:
            first = "SIGINT" if _is_impatient(received) else received[0]
            return Preempted.EXIT_CODES[first], f"stopped by {CAUSES[first]} without saving; {resume}"
        ended = f"; terminated the {num_waiting} waiting for it" if num_waiting else ""
        if code > 0:  # it has reported its own error
            if failed == 0:
                return code, None
            errors[failed].seek(0)
            sys.stderr.write(errors[failed].read().decode(errors="replace"))
            return code, f"process {failed} of {len(processes)} failed with exit code {code}{ended}"
        name = signal.Signals(-code).name
        lost = " after it lost another process of the run" if name == "SIGABRT" else ""
        return 1, f"process {failed} of {len(processes)} was killed by {name}{lost}{ended}; {resume}"


def _is_impatient(received: Sequence[str]) -> bool:
    """True after a second Ctrl-C, or one after another signal."""
    return "SIGINT" in received[1:]


def _wait(processes: Sequence[subprocess.Popen], received: Sequence[str]) -> tuple[int, int | None]:
    """Returns the exit code, and the index of the process that failed first, or None.

    A process killed by a signal comes before failed ones, since it explains their failures. `received` are the names of
    the signals that the launcher has received so far.
    """
    while True:
        codes = [process.poll() for process in processes]
        if _is_impatient(received) and None in codes:
            return -signal.SIGKILL, codes.index(None)
        failed = [i for i, code in enumerate(codes) if code not in (None, 0, *Preempted.EXIT_CODES.values())]
        if failed:
            first = min(failed, key=lambda i: (codes[i] > 0, i))
            return codes[first], first
        if None not in codes:
            return max(codes), None
        time.sleep(_POLL_SECONDS)


def _kill(processes: Sequence[subprocess.Popen]) -> int:
    """Kills the processes that are still running, including stopped ones; returns their number."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.kill()
        process.wait()
    return len(running)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
