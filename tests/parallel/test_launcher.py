"""The launcher of local processes, with small programs in the place of trainings."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from deeplab_jax.parallel import launcher
from tests.support import runs

# Other tests may have started JAX in this process, which warns about forks; a launcher has not started it.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork")

SLEEP = "import time; time.sleep(60)"
FAIL = "import sys; print('deeplab-jax: bad data', file=sys.stderr); sys.exit(1)"
DIE = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
ABORT = "import os; os.abort()"


def programs(*texts):
    return [[sys.executable, "-c", text] for text in texts]


def test_processes_that_succeed_give_exit_code_zero(capfd):
    assert launcher.run(programs("print('first')", "print('second')"), {}) == (0, None)
    assert capfd.readouterr().out == "first\n"


def test_the_environment_is_passed_on():
    code, _ = launcher.run(programs("import os, sys; sys.exit(int(os.environ['CODE']))"), {"CODE": "75"})
    assert code == 75


@pytest.mark.parametrize(
    ("texts", "code", "line", "shown"),
    [
        (
            (SLEEP, DIE, SLEEP),
            1,
            "process 1 of 3 was killed by SIGKILL; terminated the 2 waiting for it; run the same command",
            "",
        ),
        (
            (ABORT, SLEEP),
            1,
            "process 0 of 2 was killed by SIGABRT after it lost another process of the run; terminated",
            "",
        ),
        ((SLEEP, FAIL), 1, "process 1 of 2 failed with exit code 1; terminated the 1 waiting for it", "bad data"),
    ],
)
def test_a_process_that_dies_is_named_and_the_others_are_terminated(capfd, texts, code, line, shown):
    begin = time.monotonic()
    found, said = launcher.run(programs(*texts), {})
    assert time.monotonic() - begin < 10
    assert found == code
    assert said.startswith(line)
    assert shown in capfd.readouterr().err


def test_a_killed_process_explains_the_failures_of_those_before_it(monkeypatch):
    # Both have ended by the time the parent looks: the first failed because the second was gone.
    class Ended(subprocess.Popen):
        def __init__(self, command, **options):
            self.returncode = int(command[0])

        def __del__(self):  # there is no process to wait for
            pass

        def poll(self):
            return self.returncode

    monkeypatch.setattr(launcher.subprocess, "Popen", Ended)
    code, line = launcher.run([["1"], ["-9"]], {})
    assert code == 1
    assert line.startswith("process 1 of 2 was killed by SIGKILL; run the same command again")


def test_an_error_of_the_first_process_adds_no_line(capfd):
    assert launcher.run(programs(FAIL, SLEEP), {}) == (1, None)
    assert capfd.readouterr().err == "deeplab-jax: bad data\n"


_PARENT = """
    import sys
    from deeplab_jax.parallel import launcher
    save = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit({code})); "
    save += "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    code, line = launcher.run([[sys.executable, "-c", save + "print(flush=True); time.sleep(60)"]] * 2, {{}})
    print(line, file=sys.stderr)
    sys.exit(code)
"""


def start_parent(code):
    """Starts a launcher in a process group of its own, with two processes that end with a code on SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_PARENT).format(code=code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdout.readline()  # the first is ready
    runs.wait_for(lambda: len(runs.children(process.pid)) == 2)
    time.sleep(0.3)  # and the second
    return process


@pytest.fixture
def parent():
    process = start_parent(75)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_to_the_group_reaches_every_process_once_as_sigterm(parent, name):
    os.killpg(parent.pid, getattr(signal, name))
    _, err = parent.communicate(timeout=20)
    assert (parent.returncode, err) == (75, "None\n")


def test_a_second_ctrl_c_kills_the_processes():
    process = start_parent("None if time.sleep(60) else 0")  # saving takes long
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == (
        "stopped by Ctrl-C without saving; run the same command again to continue from the newest checkpoint\n"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells a process that its parent died")
def test_no_process_outlives_its_parent(parent):
    pids = runs.children(parent.pid)
    assert all(runs.is_running(pid) for pid in pids)
    parent.kill()
    runs.wait_for(lambda: not any(runs.is_running(pid) for pid in pids), seconds=20)  # fails after so long
