"""Starts the demo server as a user does."""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

PATIENCE = 240  # seconds; a busy machine compiles slowly


@contextlib.contextmanager
def serving(*arguments: str, temporary: pathlib.Path | None = None) -> Iterator[str]:
    """Runs `deeplab-jax demo`, yields its address, and stops it with SIGTERM.

    Args:
      *arguments: arguments of the command.
      temporary: its folder for temporary files (default: the system's).
    """
    with running(*arguments, temporary=temporary) as (address, server):
        yield address
        server.terminate()
        assert server.wait(60) == 0


@contextlib.contextmanager
def running(*arguments: str, temporary: pathlib.Path | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """Like `serving`, but yields the process too, which the caller ends."""
    command = [sys.executable, "-m", "deeplab_jax", "demo", "--port", "0", *arguments]
    with tempfile.TemporaryFile("w+") as log:
        environment = os.environ if temporary is None else {**os.environ, "TMPDIR": str(temporary)}
        server = subprocess.Popen(command, stderr=log, env=environment)
        try:
            yield _wait_for_address(server, log), server
        finally:
            server.kill()
            server.wait()


def _wait_for_address(server: subprocess.Popen, log: io.TextIOBase) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        log.seek(0)
        text = log.read()
        if found := re.search(r"Open (http://\S+) in a browser", text):
            return found[1]
        assert server.poll() is None, f"the server ended: {text}"
        time.sleep(0.2)
    raise AssertionError(f"no address after {PATIENCE} s: {text}")
