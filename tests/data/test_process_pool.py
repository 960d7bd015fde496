"""Work in several processes: the order, errors, and data sets that are prepared in them or interrupted."""

import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from deeplab_jax import data
from deeplab_jax.data import process_pool, record_files
from deeplab_jax.data.check import check
from deeplab_jax.data.dataset import RawExample
from deeplab_jax.data.masks import UnknownLabels
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError
from tests.conftest import make_folder
from tests.support import portable

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def for_all(monkeypatch):
    """Few items are worth several processes."""
    monkeypatch.setattr(process_pool, "_SMALL", 1)


def test_results_are_in_order_and_from_other_processes(for_all):
    """One test, because starting processes takes a second."""
    with process_pool.use(2):
        found = list(process_pool.map_in_order(portable.square, range(50)))
        assert [value for value, _ in found] == [value * value for value in range(50)]
        assert os.getpid() not in {process for _, process in found}
        results = process_pool.map_in_order(portable.fail_at_nine, range(50))
        assert [next(results) for _ in range(9)] == list(range(9))
        with pytest.raises(UserError, match="^nine$"):
            next(results)
        # What other processes cannot get is computed here.
        assert list(process_pool.map_in_order(lambda value: value + 1, range(50))) == list(range(1, 51))
        with pytest.raises(UserError, match="a process that reads files died .*smaller --workers"):
            list(process_pool.map_in_order(portable.die_at_nine, range(50)))
    assert {process for _, process in process_pool.map_in_order(portable.square, range(50))} == {os.getpid()}


def test_few_items_are_not_worth_a_process():
    with process_pool.use(2):
        assert {process for _, process in process_pool.map_in_order(portable.square, range(50))} == {os.getpid()}
    assert list(process_pool.map_in_order(portable.square, [])) == []


def test_errors_survive_the_way_between_processes():
    error = pickle.loads(pickle.dumps(UnknownLabels("text", np.array([7, 7, 9]), are_colors=True)))
    assert (str(error), error.counts, error.described()) == ("text", {7: 2, 9: 1}, {"#000007": 2, "#000009": 1})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_data_set_has_the_same_bytes_from_several_processes(for_all, tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "SHARD_BYTES", 2_000)
    root = make_folder(tmp_path / "own", count=24)
    one = prepare("folder", source=root, data_dir=tmp_path / "one")
    several = prepare("folder", source=root, data_dir=tmp_path / "several", workers=2)
    assert len(contents(one)) > 5
    assert contents(one) == contents(several)


@pytest.mark.slow
def test_check_counts_the_same_in_several_processes(for_all, tmp_path):
    root = make_folder(tmp_path / "own", count=24)
    (root / "masks" / "field_003.png").write_bytes(b"damaged")
    reports = [check("folder", source=root, workers=workers) for workers in (1, 2)]
    for split in ("train", "val"):
        pixels = [report.splits[split].pixels for report in reports]
        np.testing.assert_array_equal(*pixels)
        assert reports[0].splits[split].problems == reports[1].splits[split].problems


# Continuing


@pytest.fixture
def counted(monkeypatch):
    """The ids of the examples that are read, and a setting: the number of reads after which Ctrl-C comes."""
    read, calls = RawExample.read, []

    def counted_read(self, label_set):
        calls.append(self.id)
        if len(calls) == counted_read.limit:
            raise KeyboardInterrupt
        return read(self, label_set)

    counted_read.limit = None
    monkeypatch.setattr(RawExample, "read", counted_read)
    monkeypatch.setattr(record_files, "SHARD_BYTES", 2_000)
    return calls, counted_read


@pytest.fixture
def interrupted(tmp_path, counted):
    """A folder whose preparation was interrupted after some files, and one that was not."""
    calls, read = counted
    root = make_folder(tmp_path / "own", count=20)
    complete = prepare("folder", source=root, data_dir=tmp_path / "complete")
    calls.clear()
    read.limit = 14
    with pytest.raises(KeyboardInterrupt):
        prepare("folder", source=root, data_dir=tmp_path / "data")
    calls.clear()
    read.limit = None
    return root, tmp_path / "data", complete


def test_an_interrupted_preparation_continues(interrupted, counted, caplog):
    root, data_dir, complete = interrupted
    assert [path.name for path in data_dir.rglob("*") if path.name == "1.0.0"] == ["1.0.0"]  # in incomplete/
    with pytest.raises(UserError, match="folder is not prepared"):
        data.open_source("folder", "train", data_dir=data_dir)
    target = prepare("folder", source=root, data_dir=data_dir)
    assert 0 < len(counted[0]) < 20
    assert contents(target) == contents(complete)
    assert [path.name for path in target.parent.iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("what", ["image", "mask"])
def test_changed_files_are_read_again(interrupted, counted, what):
    root, data_dir, _ = interrupted
    stored = json.loads(min(data_dir.rglob("train.*.json")).read_text())
    first = stored["examples"][0][0]
    other = stored["examples"][1][0]
    folder, suffix = ("images", ".jpg") if what == "image" else ("masks", ".png")
    (root / folder / f"{first}{suffix}").write_bytes((root / folder / f"{other}{suffix}").read_bytes())
    prepare("folder", source=root, data_dir=data_dir)
    assert first in counted[0]
    source = data.open_source("folder", "train", data_dir=data_dir)
    pairs = dict(zip(source.ids(), data.decode_examples(source, range(len(source))), strict=True))
    which = 0 if what == "image" else 1
    np.testing.assert_array_equal(pairs[first][which], pairs[other][which])


def test_other_classes_start_over(interrupted, counted):
    root, data_dir, _ = interrupted
    (root / "classes.txt").write_text("ground\ncrop\nthistle\n")
    prepare("folder", source=root, data_dir=data_dir)
    assert len(counted[0]) == 20
    assert data.open_source("folder", "train", data_dir=data_dir).label_set.class_names[2] == "thistle"


def test_a_truncated_file_is_written_again(interrupted, counted):
    root, data_dir, complete = interrupted
    file = min(data_dir.rglob("train.*.json")).with_suffix("")
    file.write_bytes(file.read_bytes()[:-10])
    assert contents(prepare("folder", source=root, data_dir=data_dir)) == contents(complete)
    assert len(counted[0]) == 20


def test_a_wrong_example_keeps_the_files_before_it(interrupted, counted):
    root, data_dir, complete = interrupted
    calls, _ = counted
    names = sorted(path.stem for path in (root / "images").iterdir())
    mask = root / "masks" / f"{names[-1]}.png"
    good = mask.read_bytes()
    mask.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{mask.name}"):
        prepare("folder", source=root, data_dir=data_dir)
    mask.write_bytes(good)
    calls.clear()
    assert contents(prepare("folder", source=root, data_dir=data_dir)) == contents(complete)
    assert len(calls) < 10


def test_two_preparations_at_a_time_are_refused(interrupted, tmp_path):
    import fcntl

    root, data_dir, _ = interrupted
    with (data_dir / "folder" / "incomplete" / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is preparing folder"):
            prepare("folder", source=root, data_dir=data_dir)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left(tmp_path, number):
    """A signal to the command, or to its whole process group as from Ctrl-C, ends all processes without a traceback."""
    script = """
        import os, pathlib, time
        from deeplab_jax.data import dataset, process_pool
        from deeplab_jax.__main__ import main

        read = dataset.RawExample.read

        def slow(self, label_set):
            time.sleep(0.3)
            return read(self, label_set)

        dataset.RawExample.read = slow
        process_pool._SMALL = 1

        if __name__ == "__main__":
            main()
    """
    path = tmp_path / "slow.py"
    path.write_text(textwrap.dedent(script))
    root = make_folder(tmp_path / "own", count=60)
    command = [sys.executable, str(path), "data", "prepare", "folder", "--source", str(root), "--workers", "2"]
    command += ["--data-dir", str(tmp_path / "data")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    group = os.getpgid(process.pid)
    deadline = time.monotonic() + 60
    while not any((tmp_path / "data").rglob("train.0")) and time.monotonic() < deadline:
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(group, number)
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    while time.monotonic() < deadline + 60:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(group, signal.SIGKILL)
        raise AssertionError("processes are left")
