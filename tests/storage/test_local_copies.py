"""Copies of objects on the local disk: prepared data under a limit, and folders that killed processes leave."""

import os
import subprocess
import sys

import pytest

from deeplab_jax import data
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError
from deeplab_jax.storage import client, local_copies
from tests.conftest import make_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPLAB_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(local_copies, "_in_use", {})
    yield tmp_path / "cache"
    forget()


def forget():
    """Lets go of the cached files, as the end of the process does."""
    for lock in local_copies._in_use.values():
        lock.close()
    local_copies._in_use.clear()


def test_prepared_data_in_a_bucket_equal_those_on_a_disk(bucket, tmp_path, monkeypatch):
    source = make_folder(tmp_path / "own")
    local = prepare("folder", source=source, data_dir=tmp_path / "data")
    folder = prepare("folder", source=source, data_dir=bucket / "data")
    assert {path.name for path in folder.iterdir()} == {path.name for path in local.iterdir()}
    assert prepare("folder", source=source, data_dir=bucket / "data") == folder
    downloads, download = [], client.download
    monkeypatch.setattr(client, "download", lambda pairs: downloads.append(pairs) or download(pairs))
    for _ in range(2):
        ours, theirs = (
            data.open_source("folder", "train", data_dir=each) for each in (bucket / "data", str(tmp_path / "data"))
        )
        assert [ours[i] for i in range(len(ours))] == [theirs[i] for i in range(len(theirs))]
        assert data.fingerprint(ours) == data.fingerprint(theirs)
        forget()
    assert len(downloads) == 1  # the second opening finds the copies
    (folder / "dataset_info.json").unlink()  # an upload that was interrupted is repeated
    prepare("folder", source=source, data_dir=bucket / "data")
    assert len(data.open_source("folder", "val", data_dir=bucket / "data")) > 0
    forget()


def test_copies_that_were_not_used_for_the_longest_time_make_room(bucket, cache, monkeypatch):
    monkeypatch.setenv("DEEPLAB_JAX_CACHE_GB", "0.000025")  # 25 kB
    for name in "abc":
        (bucket / name / "file").write_bytes(name.encode() * 10_000)
    folders = {}
    for time, name in enumerate("ab"):
        folders[name] = local_copies.cached_files(bucket / name, ["file"])
        os.utime(folders[name].with_suffix(".lock"), (time, time))
    in_use = r"needs 1e-05 GB locally, but of the 2.5e-05 GB that the cache may have, 2e-05 are in use; set DEEPLAB"
    with pytest.raises(UserError, match=in_use):
        local_copies.cached_files(bucket / "c", ["file"])
    assert all((folder / "file").exists() for folder in folders.values())
    forget()
    (bucket / "d" / "file").write_bytes(b"d" * 10_000)
    local_copies.cached_files(bucket / "d", ["file"])
    assert not (folders["a"] / "file").exists()
    assert (local_copies.cached_files(bucket / "d", ["file"]) / "file").read_bytes() == b"d" * 10_000
    monkeypatch.setenv("DEEPLAB_JAX_CACHE_GB", "0.000001")
    with pytest.raises(UserError, match=r"needs 1e-05 GB locally, but of the 1e-06 GB that the cache may have"):
        local_copies.cached_files(bucket / "a", ["file"])
    with pytest.raises(UserError, match="missing; prepare the data set again"):
        local_copies.cached_files(bucket / "a", ["another"])
    forget()


def test_a_file_that_is_written_again_is_downloaded_again(bucket):
    path = bucket / "a" / "file"
    for content in (b"old", b"newer"):
        path.write_bytes(content)
        assert (local_copies.cached_files(bucket / "a", ["file"]) / "file").read_bytes() == content
    forget()


def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path, cache):
    code = (
        "from deeplab_jax.storage.local_copies import *\nwith scratch_folder() as f:\n  print(f, flush=True); input()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        left = process.stdout.readline().strip()
        with local_copies.scratch_folder():
            assert os.path.isdir(left)  # it lives
        process.kill()
    with local_copies.scratch_folder() as folder:
        assert not os.path.isdir(left)
        assert folder.is_dir()
    assert not folder.exists()


def test_output_of_other_libraries_is_uploaded_unless_they_fail(bucket, tmp_path):
    with local_copies.local_output(bucket / "out" / "a.bin") as path:
        path.write_bytes(b"1")
    with local_copies.local_output(bucket / "out" / "folder") as path:
        (path / "b").mkdir(parents=True)
        (path / "b" / "c").write_bytes(b"2")
    assert (bucket / "out" / "a.bin").read_bytes() + (bucket / "out" / "folder" / "b" / "c").read_bytes() == b"12"

    def fail():
        with local_copies.local_output(bucket / "out" / "d") as path:
            path.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not (bucket / "out" / "d").exists()
    with local_copies.local_output(tmp_path / "e") as path:
        assert path == tmp_path / "e"
    with local_copies.local_input(bucket / "out" / "folder") as path:
        assert (path / "b" / "c").read_bytes() == b"2"
    with local_copies.local_input(bucket / "out" / "a.bin") as path:
        assert path.read_bytes() == b"1"
    with pytest.raises(UserError, match="does not exist$"), local_copies.local_input(bucket / "no"):
        pass
