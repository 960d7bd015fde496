"""Checkpoints: restored bit for bit, complete or absent, and one line for every failure of a disk."""

import collections
import pathlib
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.training.state import TrainState
from deeplab_jax.workdir import checkpoint


def make_state(step: int, size: int = 5) -> TrainState:
    """A state whose values differ for every step, with all dtypes of a real run."""
    key = jax.random.PRNGKey(step)
    return TrainState(
        step=jnp.int32(step),
        examples_seen=jnp.uint32(2**31 + step),
        params={"backbone": {"kernel": jax.random.normal(key, (size, 3)), "bias": jnp.float32([np.pi, -0.0, 1e-42])}},
        batch_stats={"backbone": {"mean": jax.random.uniform(key, (size,))}},
        opt_state=(jax.random.normal(key, (size,), jnp.bfloat16), jnp.int32(step)),
        rng=key,
    )


def save(checkpoints: checkpoint.Checkpoints, state: TrainState, notes=None) -> None:
    checkpoints.save(int(state.step), **state.to_items(), notes=notes)


def restore(checkpoints: checkpoint.Checkpoints, like: TrainState) -> tuple[TrainState, dict]:
    variables, training, notes = checkpoints.restore(**like.to_items())
    return like.with_items(variables=variables, training=training), notes


def assert_identical(tree, other) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for leaf, same in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert leaf.dtype == same.dtype
        assert np.asarray(leaf).tobytes() == np.asarray(same).tobytes()


def steps_of(workdir: pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a workdir. Fails if the folder contains anything else."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_state_is_restored_bit_for_bit(tmp_path):
    state = make_state(7)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        save(checkpoints, state)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7
        assert_identical(restore(checkpoints, make_state(0))[0], state)


def test_variables_are_restored_with_or_without_known_shapes(tmp_path):
    state = make_state(7)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, state)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert_identical(checkpoints.restore_variables(make_state(0).variables), state.variables)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:  # which has not looked into any checkpoint yet
        assert_identical(checkpoints.saved_variables(), state.variables)


def test_a_checkpoint_is_restored_to_the_requested_sharding(tmp_path):
    state = make_state(7, size=8)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, state)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    like = make_state(0, size=8).variables
    kernel = like["params"]["backbone"]["kernel"]
    like["params"]["backbone"]["kernel"] = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=split)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_variables(like)
    assert restored["params"]["backbone"]["kernel"].sharding == split
    assert_identical(restored, state.variables)


def test_the_newest_checkpoints_are_kept(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 5, 6, 9):
            save(checkpoints, make_state(step))
    assert steps_of(tmp_path) == [6, 9]
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        assert_identical(restore(checkpoints, make_state(0))[0], make_state(9))


def test_saving_a_step_again_changes_nothing(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, make_state(3))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, make_state(3))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_incomplete_folder_of_a_killed_run_is_not_a_checkpoint(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, make_state(3))
    left_over = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    (left_over / "variables").mkdir(parents=True)
    (left_over / "variables" / "manifest.ocdbt").write_bytes(b"half")
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
        assert_identical(restore(checkpoints, make_state(0))[0], make_state(3))
    assert steps_of(tmp_path) == [3]


def test_the_best_checkpoint_is_kept_and_known_after_a_restart(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, score in ((1, 0.2), (2, 0.5), (3, 0.5), (4, None), (5, 0.1)):
            assert checkpoints.record_score(step, score) == (step in (1, 2))
            save(checkpoints, make_state(step))
    assert steps_of(tmp_path) == [2, 4, 5]
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        restore(checkpoints, make_state(0))
        assert checkpoints.best == {"step": 2, "mean_iou": 0.5}
        assert not checkpoints.record_score(6, 0.4)
        save(checkpoints, make_state(6))
    assert steps_of(tmp_path) == [2, 5, 6]


def test_averages_are_evaluated_and_restored(tmp_path):
    state = make_state(7).with_averages()
    state = state.replace(ema_variables=jax.tree.map(lambda leaf: leaf + 1, state.ema_variables))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, state, {"window": {"loss_sum": 0.1}})
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        restored, notes = restore(checkpoints, make_state(0).with_averages())
        assert_identical(restored, state)
        assert notes == {"best": None, "window": {"loss_sum": 0.1}}
        assert_identical(checkpoints.saved_variables(), state.ema_variables)


def files_of(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory) -> pathlib.Path:
    """A workdir with checkpoints of the steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("two")
    with checkpoint.Checkpoints(workdir, keep=2) as checkpoints:
        for step in (1, 2):
            save(checkpoints, make_state(step))
    return workdir


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_if_any_file_is_damaged_the_previous_checkpoint_is_used(two_saved, tmp_path, caplog, damage):
    names = files_of(two_saved / "checkpoints" / "2")
    assert len(names) > 10
    for i, name in enumerate(names):
        workdir = shutil.copytree(two_saved, tmp_path / str(i))
        DAMAGES[damage](workdir / "checkpoints" / "2" / name)
        caplog.clear()
        with checkpoint.Checkpoints(workdir, keep=3, read_only=True) as checkpoints:
            # Orbax's own record of the commit time is in no digest, since nothing reads it back.
            noticed = name not in ("_CHECKPOINT_METADATA", "commit_success.txt")
            assert checkpoints.latest_step() == (1 if noticed else 2), name
            assert_identical(restore(checkpoints, make_state(0))[0], make_state(1 if noticed else 2))
        assert ("checkpoints/2 is damaged" in caplog.text) == noticed, name
        assert steps_of(workdir) == [1, 2]


def test_a_run_replaces_a_damaged_checkpoint(two_saved, tmp_path):
    workdir = shutil.copytree(two_saved, tmp_path / "run")
    flip(workdir / "checkpoints" / "2" / "notes" / "metadata")
    with checkpoint.Checkpoints(workdir, keep=3) as checkpoints:
        assert_identical(restore(checkpoints, make_state(0))[0], make_state(1))
        save(checkpoints, make_state(2))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "2.damaged"]
    with checkpoint.Checkpoints(workdir, keep=3) as checkpoints:
        assert_identical(restore(checkpoints, make_state(0))[0], make_state(2))


def test_if_every_checkpoint_is_damaged_nothing_is_restored(two_saved, tmp_path, caplog):
    workdir = shutil.copytree(two_saved, tmp_path / "run")
    for step in ("1", "2"):
        (workdir / "checkpoints" / step / "digests.json").unlink()
    for read_only in (True, False, False):  # a second start does not train from scratch
        caplog.clear()
        refused = pytest.raises(UserError, match="^every checkpoint in .*checkpoints is damaged; restore")
        with checkpoint.Checkpoints(workdir, keep=3, read_only=read_only) as checkpoints, refused:
            checkpoints.latest_step()
        assert caplog.text.count("it has no digests.json") == 2
    assert steps_of(workdir) == [1, 2]


def test_a_reader_does_not_disturb_a_run_that_is_saving(two_saved, tmp_path):
    workdir = shutil.copytree(two_saved, tmp_path / "run")
    half_written = workdir / "checkpoints" / "3.orbax-checkpoint-tmp"
    half_written.mkdir()
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 2
    assert half_written.is_dir()


def test_a_checkpoint_is_not_deleted_while_it_is_read(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, make_state(1))
        checkpoints.wait()
        with checkpoint.Checkpoints(tmp_path, read_only=True) as reader:
            assert reader.latest_step() == 1
            save(checkpoints, make_state(2))
            checkpoints.wait()
            assert steps_of(tmp_path) == [1, 2]
            assert_identical(reader.saved_variables(), make_state(1).variables)
        save(checkpoints, make_state(3))
    assert steps_of(tmp_path) == [3]


def test_a_reader_takes_the_next_checkpoint_if_one_vanishes(two_saved, tmp_path, monkeypatch, caplog):
    """As on a disk without locks: the training replaces checkpoint 1 by 2 between two steps of the reader."""
    workdir = tmp_path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    first = shutil.copytree(two_saved / "checkpoints" / "1", workdir / "checkpoints" / "1")
    original, looks = checkpoint.lock_for_reading, []

    def replace(folder):
        looks.append(folder.name)
        if len(looks) == 1:
            shutil.copytree(two_saved / "checkpoints" / "2", workdir / "checkpoints" / "2")
            shutil.rmtree(first)
        return original(folder)

    monkeypatch.setattr(checkpoint, "lock_for_reading", replace)
    with checkpoint.Checkpoints(workdir, read_only=True) as reader:
        assert reader.latest_step() == 2
        assert looks == ["1", "2"]
        # Now 2 is replaced by 1, after the reader has found it.
        shutil.copytree(two_saved / "checkpoints" / "1", first)
        shutil.rmtree(workdir / "checkpoints" / "2")
        assert_identical(reader.saved_variables(), make_state(1).variables)
    assert caplog.messages == []


def test_a_checkpoint_that_is_half_deleted_is_not_called_damaged(tmp_path, monkeypatch, caplog):
    """The reader lists checkpoint 1, and opens it while the training deletes it."""
    original, held = shutil.rmtree, []

    def delete_slowly(folder, **options):
        (folder / "digests.json").unlink()
        assert checkpoint.lock_for_reading(folder.with_name("1")) is None
        held.append(folder.name)
        original(folder, **options)

    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, make_state(1))
        checkpoints.wait()
        monkeypatch.setattr(checkpoint.shutil, "rmtree", delete_slowly)
        save(checkpoints, make_state(2))
        checkpoints.wait()
    assert held == ["1.deleted"]
    assert caplog.messages == []


def test_what_a_killed_training_did_not_delete_goes_with_the_next_save(two_saved, tmp_path):
    workdir = shutil.copytree(two_saved, tmp_path / "run")
    (workdir / "checkpoints" / "1").rename(workdir / "checkpoints" / "1.deleted")
    (workdir / "checkpoints" / "1.deleted" / "digests.json").unlink()
    with checkpoint.Checkpoints(workdir, keep=3) as checkpoints:
        assert checkpoints.latest_step() == 2
        save(checkpoints, make_state(3))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3"]


def test_an_empty_checkpoint_is_damaged(tmp_path):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    refused = pytest.raises(UserError, match="^every checkpoint in .* is damaged")
    with checkpoint.Checkpoints(tmp_path, read_only=True) as checkpoints, refused:
        checkpoints.latest_step()


def test_checkpoints_that_are_replaced_all_the_time_are_not_called_damaged(two_saved, tmp_path, monkeypatch, caplog):
    workdir = shutil.copytree(two_saved, tmp_path / "run")
    monkeypatch.setattr(checkpoint, "VANISHING_SECONDS", 0.1)
    monkeypatch.setattr(checkpoint, "lock_for_reading", lambda folder: None)
    refused = pytest.raises(UserError, match="are replaced faster than they can be read")
    with checkpoint.Checkpoints(workdir, read_only=True) as reader, refused:
        reader.latest_step()
    assert caplog.messages == []


def test_a_file_in_the_place_of_the_checkpoints_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="^cannot write checkpoints to .*checkpoints: File exists"):
        checkpoint.Checkpoints(tmp_path)
    with pytest.raises(UserError, match="^cannot read the checkpoints in .*checkpoints: Not a directory"):
        checkpoint.Checkpoints(tmp_path, read_only=True)


# ---- Full disks ----


def test_too_little_room_is_detected_before_anything_is_written(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    state = make_state(2)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, make_state(1))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - needed, needed - 1))
        with pytest.raises(
            UserError, match="^no room for a checkpoint in .*checkpoints: it needs .* MB are free; free some"
        ):
            save(checkpoints, state)
    assert steps_of(tmp_path) == [1]
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - needed, needed))
        save(checkpoints, state)
    assert steps_of(tmp_path) == [2]


_FULL_DISK = """
    import resource, signal, sys, pathlib
    sys.path.insert(0, {tests!r})
    from tests.workdir.test_checkpoint import make_state, save
    from deeplab_jax.workdir import checkpoint
    from deeplab_jax.errors import UserError

    workdir = pathlib.Path({workdir!r})
    with checkpoint.Checkpoints(workdir, keep=3) as checkpoints:
        save(checkpoints, make_state(1))
    # No file may grow beyond 256 kB: the error (EFBIG) that a write in the middle of a checkpoint meets.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
    try:
        with checkpoint.Checkpoints(workdir, keep=3) as checkpoints:
            save(checkpoints, make_state(2, size=300_000))
    except UserError as error:
        print("UserError:", error)
"""


def test_a_full_disk_is_reported_in_one_line_and_older_checkpoints_stay_intact(tmp_path):
    program = textwrap.dedent(_FULL_DISK).format(tests=str(pathlib.Path(__file__).parents[2]), workdir=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("UserError:")]
    assert len(lines) == 1, done.stdout + done.stderr
    assert "the disk is full: cannot write a checkpoint" in lines[0]
    assert "older checkpoints are intact" in lines[0]
    assert done.returncode == 0
    with checkpoint.Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert_identical(restore(checkpoints, make_state(0))[0], make_state(1))
    assert steps_of(tmp_path) == [1]


def test_opening_a_run_read_only_logs_no_warning(two_saved, caplog):
    with checkpoint.Checkpoints(two_saved, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 2
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []
