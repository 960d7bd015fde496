"""Checkpoints in a bucket: complete or not there, verified when they are read, and as a local workdir has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.storage import client
from deeplab_jax.workdir import bucket_checkpoints, layout
from deeplab_jax.workdir.bucket_checkpoints import open_checkpoints
from deeplab_jax.workdir.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPLAB_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def trees(value):
    return {"variables": {"a": jnp.full((3, 2), value)}, "training": {"step": jnp.asarray(int(value))}}


def save(checkpoints, step):
    checkpoints.save(step, **trees(float(step)), notes={"window": step})
    checkpoints.wait()


def restore(checkpoints):
    variables, training, notes = checkpoints.restore(**jax.tree.map(jnp.zeros_like, trees(0.0)))
    np.testing.assert_array_equal(variables["a"], np.full((3, 2), float(training["step"])))
    return int(training["step"]), notes


def damage(folder):
    file = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_the_newest_and_the_best_are_kept_and_a_copy_is_a_local_workdir(bucket, tmp_path, cache):
    workdir = bucket / "run"
    with open_checkpoints(workdir) as checkpoints:
        assert checkpoints.latest_step() is None
        save(checkpoints, 1)
        assert checkpoints.record_score(2, 0.5)
        assert not checkpoints.record_score(2, 0.4)
        for step in (2, 3, 4):
            save(checkpoints, step)
    assert layout.checkpoint_steps(workdir) == [4, 2]
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    with open_checkpoints(workdir) as checkpoints:
        assert checkpoints.latest_step() == checkpoints.found_step() == 4
        step, notes = restore(checkpoints)
        assert (step, notes) == (4, {"best": {"step": 2, "mean_iou": 0.5}, "window": 4})
        assert checkpoints.best == {"step": 2, "mean_iou": 0.5}
    with open_checkpoints(workdir, read_only=True, step=2) as checkpoints:
        np.testing.assert_array_equal(checkpoints.saved_variables()["a"], np.full((3, 2), 2.0))
        np.testing.assert_array_equal(checkpoints.restore_variables(trees(0.0)["variables"])["a"], np.full((3, 2), 2.0))
    names = [entry.name for entry in client.list_files(workdir)]
    client.download([(workdir / name, tmp_path / "copy" / name) for name in names])
    with Checkpoints(tmp_path / "copy") as checkpoints:
        assert restore(checkpoints)[0] == 4
    assert not [path for path in (cache / "scratch").iterdir() if path.is_dir()]


def test_a_damaged_checkpoint_is_reported_and_set_aside(bucket, caplog):
    workdir = bucket / "run"
    with open_checkpoints(workdir, keep=3) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step)
    damage(workdir / "checkpoints" / "3")
    next((workdir / "checkpoints" / "2" / "training").glob("_METADATA")).unlink()
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 1
    assert layout.checkpoint_steps(workdir) == [3, 2, 1]  # a reader changes nothing
    caplog.clear()
    with open_checkpoints(workdir, keep=3) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert [f"checkpoints/{step} is damaged" in text for step, text in zip((3, 2), caplog.messages, strict=True)]
        assert layout.checkpoint_steps(workdir) == [1]
        save(checkpoints, 2)  # in place of the one that was set aside
    assert layout.checkpoint_steps(workdir) == [2, 1]
    assert (workdir / "checkpoints" / "3" / "digests.json.damaged").is_file()
    with open_checkpoints(workdir) as checkpoints:
        assert restore(checkpoints)[0] == 2


def test_if_all_are_damaged_none_is_restored(bucket):
    workdir = bucket / "run"
    with open_checkpoints(workdir) as checkpoints:
        save(checkpoints, 1)
    damage(workdir / "checkpoints" / "1")
    with (
        open_checkpoints(workdir) as checkpoints,
        pytest.raises(UserError, match="^every checkpoint in .* is damaged; restore"),
    ):
        checkpoints.latest_step()
    assert layout.checkpoint_steps(workdir) == [1]


def test_an_upload_that_was_interrupted_is_not_a_checkpoint(bucket):
    workdir = bucket / "run"
    with open_checkpoints(workdir) as checkpoints:
        save(checkpoints, 1)
    for name in ("a", "training/b"):
        (workdir / "checkpoints" / "2" / name).write_bytes(b"half")
    with open_checkpoints(workdir) as checkpoints:
        assert checkpoints.latest_step() == 1
        save(checkpoints, 2)
        assert not (workdir / "checkpoints" / "2" / "a").exists()
    (workdir / "checkpoints" / "9" / "a").write_bytes(b"half")
    with open_checkpoints(workdir) as checkpoints:
        assert restore(checkpoints)[0] == 2
        save(checkpoints, 3)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"3"}


def test_a_training_that_lost_its_lock_makes_no_checkpoint_visible(bucket):
    workdir, calls = bucket / "run", []

    def check_lock():
        calls.append(None)
        if len(calls) > 1:  # lost during the upload
            raise UserError("another training has taken over")

    with pytest.raises(UserError, match="taken over"), open_checkpoints(workdir, check_lock=check_lock) as checkpoints:
        save(checkpoints, 1)
    assert layout.checkpoint_steps(workdir) == []


def test_a_reader_finds_the_next_checkpoint_if_the_one_that_it_downloads_is_deleted(bucket, monkeypatch):
    workdir = bucket / "run"
    with open_checkpoints(workdir) as writer:
        save(writer, 1)
        download, steps = client.download, iter([2, 3])

        def replace(pairs):
            pairs = list(pairs)
            if (step := next(steps, None)) is not None:
                save(writer, step)  # which deletes the previous one
            download(pairs)

        with open_checkpoints(workdir, read_only=True) as reader:
            monkeypatch.setattr(bucket_checkpoints.client, "download", replace)
            assert reader.latest_step() == 3
