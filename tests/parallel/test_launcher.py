"""The launcher of local processes, with small programs in the place of trainings."""

import os
import pathlib
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
    patient = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print(flush=True);"
    patient += "time.sleep(60)"
    code, line = launcher.run([[sys.executable, "-c", patient]] * 2, {})
    print(line, file=sys.stderr)
    sys.exit(code)
"""


@pytest.fixture
def parent():
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_PARENT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()  # the first is ready
    runs.wait_for(lambda: len(runs.children(process.pid)) == 2)
    time.sleep(0.3)  # and the second
    yield process
    process.kill()
    process.communicate()


def test_sigterm_reaches_every_process(parent):
    parent.send_signal(signal.SIGTERM)
    _, err = parent.communicate(timeout=20)
    assert (parent.returncode, err) == (75, "None\n")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells a process that its parent died")
def test_no_process_outlives_its_parent(parent):
    pids = runs.children(parent.pid)
    assert all(_running(pid) for pid in pids)
    parent.kill()
    runs.wait_for(lambda: not any(_running(pid) for pid in pids), seconds=20)  # fails after so long


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
