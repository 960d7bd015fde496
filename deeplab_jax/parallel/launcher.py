"""The parent of a run's processes on this machine: when one of them dies it says so in one line and ends the rest.

Without it, the others wait for the dead one in a collective operation until JAX' heartbeat gives up and aborts them
with a C++ stack. On several machines each has its parent: the one of the dead process acts at once, the others when
their process has aborted.
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

_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1  # of Linux' prctl


def local_launches(count: int) -> list[list[str]]:
    """The arguments that make `count` processes of this machine one run, on a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        [f"--coordinator={coordinator}", f"--num-processes={count}", f"--process-id={index}"] for index in range(count)
    ]


def run(commands: Sequence[Sequence[str]], environment: dict[str, str]) -> tuple[int, str | None]:
    """Runs commands side by side until all have ended or one has died.

    The first has this process' output; of the others it shows only why one failed, if one did by itself.
    SIGTERM and SIGINT are passed on. Should the parent itself be killed, its processes get SIGTERM (on Linux).

    Args:
      commands: of the processes.
      environment: added to this process' own.

    Returns:
      The exit code for this process, and a line to print, None if all has been said.
    """
    with contextlib.ExitStack() as stack:
        errors = [None] + [stack.enter_context(tempfile.TemporaryFile()) for _ in commands[1:]]
        processes = []

        def pass_on(number: int, frame: object) -> None:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)

        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, pass_on))
        stack.callback(_kill, processes)
        for command, error in zip(commands, errors, strict=True):
            processes.append(
                subprocess.Popen(
                    command,
                    env=os.environ | environment,
                    stdout=error,
                    stderr=error,
                    preexec_fn=_end_with_parent,
                )
            )
        code, failed = _wait(processes)
        if failed is None:
            return code, None
        waited = _kill(processes)
        ended = f"; ended the {waited} that waited for it" if waited else ""
        if code > 0:  # it has said what was wrong
            if failed == 0:
                return code, None
            errors[failed].seek(0)
            sys.stderr.write(errors[failed].read().decode(errors="replace"))
            return code, f"process {failed} of {len(processes)} stopped with exit code {code}{ended}"
        name = signal.Signals(-code).name
        lost = ", having lost another process of the run" if name == "SIGABRT" else ""
        return 1, (
            f"process {failed} of {len(processes)} was killed by {name}{lost}{ended}; the same command continues from "
            "the newest checkpoint"
        )


def _wait(processes: Sequence[subprocess.Popen]) -> tuple[int, int | None]:
    """The exit code, and which process failed first, None if none did; a killed one explains the others' failures."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [i for i, code in enumerate(codes) if code not in (None, 0, Preempted.EXIT_CODE)]
        if failed:
            first = min(failed, key=lambda i: (codes[i] > 0, i))
            return codes[first], first
        if None not in codes:
            return max(codes), None
        time.sleep(_POLL_SECONDS)


def _kill(processes: Sequence[subprocess.Popen]) -> int:
    """Ends those that still run, stopped ones too; returns how many."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.kill()
        process.wait()
    return len(running)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
