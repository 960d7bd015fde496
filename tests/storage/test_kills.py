"""A training in a bucket that is killed at any moment ends exactly like an uninterrupted one on a disk."""

import json
import os
import random
import subprocess
import sys
import time

import pytest

from deeplab_jax.storage import client
from tests.support import bucket_kills, runs

KILLS = int(os.environ.get("DEEPLAB_JAX_TEST_KILLS", "20"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is left on the local disk for the next start but this folder."""
    monkeypatch.setenv("DEEPLAB_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def straight(tmp_path_factory, compilation_cache):
    """Ten steps without an interruption in a local workdir."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    code, err = runs.run(workdir)
    assert code == 0, err
    return workdir


def downloaded(workdir, folder):
    """A local copy of a workdir."""
    names = [entry.name for entry in client.list_files(workdir)]
    client.download([(workdir / name, folder / name) for name in names])
    return folder


def check_same(workdir, straight, folder):
    copy = downloaded(workdir, folder)
    runs.assert_same_state(copy, straight)
    assert runs.lines(copy) == runs.lines(straight)
    scores = [json.loads((each / "metrics.json").read_text()) for each in (copy, straight)]
    assert scores[0] == scores[1]
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"5", "8", "10"}
    assert all((path / "digests.json").is_file() for path in (copy / "checkpoints").iterdir())


def is_uploading(workdir):
    """Whether a checkpoint has objects but no digests."""
    found = [entry.name.split("/") for entry in client.list_files(workdir / "checkpoints")]
    return {step for step, *_ in found} != {step for step, *file in found if file == ["digests.json"]}


def kill_and_finish(workdir, kills, rng):
    for done in range(kills):
        process = runs.start(workdir)
        if done % 2 == 0:
            for _ in range(rng.randint(1, 3)):  # the first, second or third checkpoint of this life
                runs.wait_for(lambda: process.poll() is not None or not is_uploading(workdir))  # noqa: B023
                runs.wait_for(lambda: process.poll() is not None or is_uploading(workdir))  # noqa: B023
            time.sleep(rng.uniform(0, 0.2))
        else:
            before = runs.logged_steps(workdir)
            runs.wait_for(lambda: process.poll() is not None or runs.logged_steps(workdir) != before)  # noqa: B023
            time.sleep(rng.uniform(0, 2))
        if process.poll() is not None:
            _, err = process.communicate()
            assert process.returncode == 0, err
            return done
        seen = runs.logged_steps(workdir)
        runs.kill(process)
        assert runs.logged_steps(workdir)[: len(seen)] == seen  # no line is lost
    code, err = runs.run(workdir)
    assert code == 0, err
    return kills


def check_kills(wanted, a_run, bucket, straight, tmp_path, seed):
    rng, kills, rounds = random.Random(seed), 0, 0
    while kills < wanted:
        kills += kill_and_finish(bucket / str(rounds), min(a_run, wanted - kills), rng)
        check_same(bucket / str(rounds), straight, tmp_path / str(rounds))
        rounds += 1
        print(f"{kills} kills in {rounds} runs in {bucket}, 0 differences", flush=True)


def kill_writers(bucket, kills):
    words = [sys.executable, bucket_kills.__file__, str(bucket), str(kills), "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].endswith("0 differences")
    print(done.stdout)


def test_the_writers_of_a_run_that_is_killed_lose_and_repeat_nothing(bucket):
    kill_writers(bucket, 2)


@pytest.mark.slow
def test_many_kills_of_the_writers(bucket):
    """DEEPLAB_JAX_TEST_KILLS sets their number."""
    kill_writers(bucket, KILLS)


@pytest.mark.slow
def test_many_kills_change_nothing(bucket, straight, tmp_path, cache):
    """DEEPLAB_JAX_TEST_KILLS sets their number."""
    check_kills(KILLS, 5, bucket, straight, tmp_path, seed=1)
    assert not [path for path in (cache / "scratch").iterdir() if path.is_dir()]
