"""Data worker processes: they outlive signals to the run but not the run, and leave no shared memory behind."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from deeplab_jax.data import workers
from deeplab_jax.errors import UserError
from tests.support import runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")

_READER = """
    import signal, sys, time
    from deeplab_jax import data
    from deeplab_jax.config import base_config

    config = base_config()
    config.data.update({"batch_size": 4, "image_size": (64, 64), "workers": 2})
    source = data.open_source("synthetic", "train", num_examples=8, image_size=(64, 64))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    batches = data.train_batches(source, config.data, seed=0)
    for batch in batches:
        print("batch", flush=True)
        time.sleep(0.1)
"""


@pytest.fixture
def reader():
    """A process that reads batches of two workers, in a process group of its own. It ignores SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_READER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "batch\n", process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_workers_ignore_signals_and_end_with_a_killed_parent(reader):
    pids = runs.data_workers(reader.pid)
    assert len(pids) == 2
    os.killpg(reader.pid, signal.SIGTERM)
    for pid in pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
    for _ in range(10):  # more than were buffered
        assert reader.stdout.readline() == "batch\n"
    name = owner(reader.pid)
    assert left_of(name)
    reader.kill()
    runs.wait_for(lambda: not any(runs.is_running(pid) for pid in pids), seconds=20)
    runs.wait_for(lambda: not left_of(name), seconds=20)
    reader.wait()
    assert reader.stderr.read() == ""  # no warnings of Python's resource tracker


def test_what_a_killed_process_group_leaves_is_removed_by_the_next_run(reader):
    name = owner(reader.pid)
    os.killpg(reader.pid, signal.SIGKILL)  # the workers and Python's resource tracker too
    reader.communicate()
    assert left_of(name)
    workers._remove_abandoned()
    assert not left_of(name)


def owner(pid: int) -> str:
    """The prefix of the shared memory of a process: the name of the file that it keeps open and locked."""
    targets = [os.readlink(path) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
    (match,) = filter(None, (re.fullmatch("/dev/shm/(deeplab_jax-[0-9a-f]{8})", target) for target in targets))
    return match[1]


def left_of(name: str) -> list[str]:
    return [path.name for path in pathlib.Path("/dev/shm").iterdir() if name in path.name]


def test_the_shared_memory_of_a_living_run_stays(reader):
    before = left_of(owner(reader.pid))
    workers._remove_abandoned()
    assert set(left_of(owner(reader.pid))) >= {name for name in before if name.startswith("sem.")}
    assert reader.stdout.readline() == "batch\n"


def test_a_machine_without_shared_memory_is_named(monkeypatch):
    def refuse(*args, **kwargs):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(workers.shared_memory, "SharedMemory", refuse)
    with pytest.raises(UserError, match=r"^data workers need shared memory.*\(/dev/shm: No such file.*workers=0"):
        next(workers.iterate(None, 1))


@pytest.mark.parametrize(
    ("code", "message"),
    [(-signal.SIGBUS, "ran out of shared memory; enlarge /dev/shm .*workers=0"), (-9, "worker process died")],
)
def test_the_end_of_a_worker_is_explained(code, message):
    with pytest.raises(UserError, match=message):
        raise UserError(workers._describe_death(code))
