"""One training at a time in a folder of a bucket."""

import json
import os
import subprocess
import sys
import time

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.storage import client
from deeplab_jax.storage.lease import Lease, is_held
from deeplab_jax.workdir import layout


@pytest.fixture
def path(bucket):
    return bucket / "runs" / "lock"


def other_machine(path):
    """Rewrites a lease as if its holder was on another machine, whose processes nobody here can see."""
    found = client.read_version(path)
    owner = json.loads(found.content) | {"machine": "another", "host": "worker-7", "process": 123}
    assert client.replace_version(path, json.dumps(owner).encode(), found.version)


def test_a_lease_excludes_others_until_it_is_released(path):
    lease = Lease(path, seconds=8.0)
    lease.acquire()
    assert is_held(path)
    with pytest.raises(UserError, match=rf"^another training is running in {path.parent} \(process {os.getpid()} of "):
        Lease(path, seconds=8.0).acquire()
    lease.check()
    lease.release()
    assert not is_held(path)
    begin = time.monotonic()
    other = Lease(path, seconds=60.0)
    other.acquire()
    assert time.monotonic() - begin < 30
    other.release()


def test_a_lease_is_taken_when_its_holder_on_another_machine_is_silent(path):
    silent = Lease(path, seconds=3.0)
    assert silent._replace(None)  # without the thread that renews it
    other_machine(path)
    other = Lease(path, seconds=30.0)
    begin = time.monotonic()
    other.acquire()
    assert time.monotonic() - begin > 1
    silent._renewed = 0.0  # long ago
    with pytest.raises(UserError, match="^another training has taken over .* let that one run, or stop it and run"):
        silent.check()
    silent.release()  # which leaves the other's lease alone
    assert is_held(path)
    other.check()
    other.release()


def test_the_lease_of_a_process_of_this_machine_that_was_killed_is_taken_at_once(bucket, path, server):
    code = f"""
from deeplab_jax.storage import BucketPath
from deeplab_jax.storage.lease import Lease
Lease(BucketPath({str(path)!r})).acquire()
print("acquired", flush=True)
import time; time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "acquired\n"
            assert is_held(path)
        finally:
            process.kill()
    assert not is_held(path)
    begin = time.monotonic()
    lease = Lease(path)
    lease.acquire()
    assert time.monotonic() - begin < 30  # of 60
    lease.release()


def test_a_damaged_lease_expires(path, monkeypatch):
    path.write_bytes(b"\xff not JSON")
    assert is_held(path)
    monkeypatch.setattr("deeplab_jax.storage.lease.LEASE_SECONDS", 1)
    lease = Lease(path)
    lease.acquire()
    lease.release()


def test_the_lock_of_a_workdir_is_a_lease(bucket):
    with layout.lock(bucket / "run") as check_lock:
        check_lock()
        assert layout.is_locked(bucket / "run")
    assert not layout.is_locked(bucket / "run")
