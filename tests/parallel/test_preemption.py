"""Signals that stop a run: noticed in every state of the main thread, at most once, and undone afterwards."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from deeplab_jax.errors import Preempted
from deeplab_jax.parallel.preemption import Preemption

NAMES = ["SIGTERM", "SIGINT", "SIGHUP"]


def send(name):
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(0.01)


@pytest.mark.parametrize(("name", "code", "cause"), [
    ("SIGTERM", 75, "SIGTERM"),
    ("SIGINT", 130, "Ctrl-C"),
    ("SIGHUP", 129, "a closed terminal (SIGHUP)"),
])  # fmt: skip
def test_a_signal_asks_the_run_to_save(name, code, cause):
    before = [signal.getsignal(getattr(signal, name)) for name in NAMES]
    with Preemption() as preemption:
        preemption.is_saved = False
        assert not preemption.reached(1)
        send(name)
        send("SIGTERM")  # schedulers may send it to the group and to the process
        assert preemption.reached(2)
        stopped = preemption.stopped("at step 2")
        assert (str(stopped), stopped.exit_code) == (f"stopped by {cause} at step 2", code)
    assert [signal.getsignal(getattr(signal, name)) for name in NAMES] == before


def test_a_second_ctrl_c_interrupts():
    with Preemption() as preemption:
        preemption.is_saved = False
        send("SIGTERM")
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")


def test_ctrl_c_interrupts_if_there_is_nothing_to_save():
    with Preemption(), pytest.raises(KeyboardInterrupt):
        send("SIGINT")


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            send("SIGHUP")
            assert not preemption.is_requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# Key derivation holds neither Python's lock nor ends when a signal arrives, like a compilation.
_BUSY = """
    import hashlib, os, sys
    from deeplab_jax.parallel.preemption import Preemption

    def end(code, line):
        print(line, flush=True)
        os._exit(code)

    with Preemption(end=end) as preemption:
        preemption.is_saved = {is_saved}
        print("busy", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize(("is_saved", "signals", "line"), [
    (True, ["SIGTERM"], "stopped by SIGTERM"),
    (False, ["SIGINT", "SIGINT"], "stopped by Ctrl-C without saving"),
])  # fmt: skip
def test_a_main_thread_that_is_busy_outside_python_is_ended(is_saved, signals, line):
    program = textwrap.dedent(_BUSY).format(is_saved=is_saved)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "busy\n"
            for name in signals:
                process.send_signal(getattr(signal, name))
                time.sleep(0.2)
            assert process.wait(timeout=10) == Preempted.EXIT_CODES[signals[-1]]
            assert process.stdout.read() == f"{line}\n"
        finally:
            process.kill()
