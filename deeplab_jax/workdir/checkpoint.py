"""Checkpoints of a training run, written by Orbax and restored on any devices."""

import contextlib
import errno
import logging
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from deeplab_jax import budget, files
from deeplab_jax.errors import UserError
from deeplab_jax.parallel import processes
from deeplab_jax.workdir.checkpoint_lock import lock_for_reading, try_lock_for_deletion
from deeplab_jax.workdir.checkpoint_rules import NO_STEP, BestScore, damaged_error, vanishing_error
from deeplab_jax.workdir.layout import CHECKPOINTS, checkpoint_steps
from deeplab_jax.workdir.orbax_manager import VANISHING_PAUSE, VANISHING_SECONDS, open_manager, quiet_absl

logger = logging.getLogger(__name__)

_VANISHED = -2  # in place of a step, like `NO_STEP`
_DAMAGED, _DELETED = "damaged", "deleted"  # suffixes of folders that are set aside
_DISK_IS_FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


class Checkpoints(BestScore):
    """The checkpoints in a workdir. A context manager: leaving it waits for pending writes.

    A checkpoint has three items. `variables` are the variables that evaluation and prediction read, and the only item
    they read; if the run averages its parameters, these are the averages. `training` is the rest of the training state.
    `notes` is JSON: the best score so far, and whatever the run needs back. Each checkpoint also holds the digests of
    its files, and only a checkpoint whose files match is ever restored.

    Args:
      workdir: the workdir of a run.
      keep: number of newest checkpoints to keep, in addition to the best.
      read_only: change nothing, so that a training may continue in the workdir. For evaluation and prediction.
      step: read only the checkpoint of this step, as if it was the newest; None for the newest.
      alone: only this process of the run reads and writes, so nothing is a collective operation, and arrays have to be
        on this process.
      after_save: called with the folder of each new checkpoint, in a thread, before older ones are deleted.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        keep: int = 1,
        read_only: bool = False,
        step: int | None = None,
        alone: bool = False,
        after_save: Callable[[pathlib.Path], None] | None = None,
    ):
        self.workdir, self._only, self._alone, self._after_save = workdir, step, alone, after_save
        self._folder = workdir.absolute() / CHECKPOINTS
        self._read_only = read_only
        self._keep = keep
        self._best_saved_step, self._intact_step = None, None
        self._reading = contextlib.ExitStack()  # the lock of the checkpoint that is read
        if not read_only:
            _create_folder(self._folder)
        else:
            checkpoint_steps(workdir)  # fails if it is not a folder
        self._manager = open_manager(self._folder, read_only=read_only, alone=alone, after_save=self._finish_save)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        with self._reading:
            if kind is None:
                self.wait()
            self._manager.close()

    def found_step(self) -> int | None:
        """Returns the step of the newest checkpoint that this process sees, intact or damaged; None without one."""
        return max(self._steps(), default=None)

    def _steps(self) -> list[int]:
        """Returns the steps of the checkpoints that may be read, newest first."""
        return [step for step in checkpoint_steps(self.workdir) if self._only in (None, step)]

    def latest_step(self) -> int | None:
        """Finds the newest intact checkpoint and returns its step; None if there is no checkpoint yet.

        The first call verifies digests. Newer checkpoints that are damaged are reported and, unless `read_only`,
        renamed to `<step>.damaged`. A collective operation in a run of several processes.

        Raises:
          UserError: there are checkpoints, but all are damaged.
        """
        if self._intact_step is None and self.found_step() is not None:
            # Only one process reads, or processes might choose differently on a failing disk.
            step = self._find_intact_step() if self._alone or processes.is_leader() else 0
            if not self._alone:
                step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
            self._intact_step = step
            if not self._read_only:
                self._manager.reload()  # some may have been renamed
            if self._intact_step == _VANISHED:
                raise vanishing_error(self._folder)
            if self._intact_step == NO_STEP:
                raise damaged_error(self._folder, self._only)
        return self._intact_step

    def save(self, step: int, *, variables: PyTree, training: PyTree, notes: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint in the background. It appears complete or not at all.

        Does nothing if the newest checkpoint is of this step.

        Args:
          step: training step, the name of the checkpoint.
          variables: arrays that evaluation reads. The next step may donate them.
          training: the remaining arrays.
          notes: values that JSON can hold.

        Raises:
          UserError: the disk is full, now or while the previous checkpoint was written.
        """
        if step == self.latest_step():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((variables, training)))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise UserError(
                f"no room for a checkpoint in {self._folder}: it needs {needed / 1e6:.0f} MB, but {free / 1e6:.0f} MB "
                "are free; free some space and run the same command again to continue"
            )
        self.wait()
        with _disk_errors(self._folder):
            self._best_saved_step = None if self._best is None else self._best["step"]
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables),
                    training=ocp.args.StandardSave(training),
                    notes=ocp.args.JsonSave({"best": self._best, **(notes or {})}),
                ),
                force=True,
            )
        self._intact_step = step

    def wait(self) -> None:
        """Waits until the last checkpoint is complete on the disk.

        Raises:
          UserError: the disk is full.
        """
        with _disk_errors(self._folder), quiet_absl():
            self._manager.wait_until_finished()

    def restore(self, *, variables: PyTree, training: PyTree) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Restores the newest checkpoint.

        Args:
          variables: arrays or `jax.ShapeDtypeStruct` leaves with the shapes and shardings to restore to.
          training: the same for the remaining arrays.

        Returns:
          The variables, the remaining arrays, and the notes they were saved with.
        """
        restored = self._manager.restore(
            self.latest_step(),
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(_abstract(variables)),
                training=ocp.args.StandardRestore(_abstract(training)),
                notes=ocp.args.JsonRestore(),
            ),
        )
        self._best = restored.notes["best"]
        return restored.variables, restored.training, restored.notes

    def restore_variables(self, like: PyTree) -> PyTree:
        """Restores the variables of the newest checkpoint, with the shapes and shardings of `like`."""

        def read(step: int) -> PyTree:
            args = ocp.args.Composite(variables=ocp.args.StandardRestore(_abstract(like)))
            return self._manager.restore(step, args=args).variables

        return self._read(read)

    def saved_variables(self, step: int | None = None) -> PyTree:
        """Reads the variables of a checkpoint, whatever their shapes, as NumPy arrays in each process.

        Args:
          step: step of the checkpoint; default: the newest.
        """

        def read(step: int) -> PyTree:
            tree = self._manager.item_metadata(step)["variables"].tree
            self._check_sizes(step, tree)
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
            restored = self._manager.restore(step, args=ocp.args.Composite(variables=ocp.args.StandardRestore(like)))
            return jax.device_get(restored.variables)

        return self._read(read) if step is None else read(step)

    def _read(self, read: Callable[[int], PyTree]) -> PyTree:
        """Reads the newest checkpoint. If it vanishes on a disk without locks, reads the next one."""
        while True:
            step = self.latest_step()
            try:
                return read(step)
            except Exception:
                is_there = (self._folder / str(step) / files.DIGESTS_FILE).exists()
                if is_there or not self._read_only or jax.process_count() > 1:
                    raise
                self._intact_step = None

    def _check_sizes(self, step: int, tree: PyTree) -> None:
        """Checks that the arrays, whose shapes are text in the checkpoint, are no larger than its files can justify."""
        folder = self._folder / str(step)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        left = budget.Budget(f"checkpoint {folder}", size)
        for leaf in jax.tree.leaves(tree):
            left.spend(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize)

    def _find_intact_step(self) -> int:
        """Returns the step of the newest intact checkpoint; `NO_STEP` if all are damaged.

        While a reader looks, a training may delete each of them. Then there is a newer one.
        """
        damaged: list[pathlib.Path] = []
        deadline = time.monotonic() + VANISHING_SECONDS
        while True:
            steps = self._steps()
            has_vanished = not steps
            for folder in (self._folder / str(step) for step in steps):
                if self._read_only and not self._hold(folder):
                    has_vanished = True
                elif (damage := files.find_damage(folder)) is None:
                    if not self._read_only:
                        for other in damaged:
                            _rename(other, _DAMAGED)
                    return int(folder.name)
                elif folder not in damaged:
                    damaged.append(folder)
                    logger.warning("checkpoint %s is damaged (%s); using the previous one", folder, damage)
            if not has_vanished:
                return NO_STEP  # nothing is renamed, or the next start would find none and train from scratch
            if time.monotonic() > deadline:
                return _VANISHED
            time.sleep(VANISHING_PAUSE)

    def _hold(self, folder: pathlib.Path) -> bool:
        """Keeps a training from deleting a checkpoint while this object is open; False if it does so already."""
        self._reading.close()
        try:
            file = lock_for_reading(folder)
        except OSError:  # damaged
            return True
        if file is not None:
            self._reading.enter_context(file)
        return file is not None

    def _finish_save(self) -> None:
        if self._after_save is not None:
            self._after_save(self._folder / str(max(checkpoint_steps(self.workdir))))
        self._delete_old()

    def _delete_old(self) -> None:
        """Deletes all checkpoints but the newest, the best, and those that another process reads.

        A checkpoint is first renamed. A reader that finds a part of one would take it for damaged.
        """
        for rest in self._folder.glob(f"*.{_DELETED}"):  # a training was killed while it deleted them
            shutil.rmtree(rest, ignore_errors=True)
        for step in checkpoint_steps(self.workdir)[self._keep :]:
            folder = self._folder / str(step)
            if step == self._best_saved_step:
                continue
            with try_lock_for_deletion(folder) as is_locked:
                if is_locked:
                    with contextlib.suppress(OSError):  # it goes after the next save
                        shutil.rmtree(_rename(folder, _DELETED))


def _rename(folder: pathlib.Path, suffix: str) -> pathlib.Path:
    """Sets a checkpoint aside, so that its folder is not one of a step anymore; returns the new folder."""
    target = folder.with_name(f"{folder.name}.{suffix}")
    if target.exists():  # from an earlier run of the same step
        shutil.rmtree(target)
    return folder.rename(target)


def _create_folder(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write checkpoints to {folder}: {error.strerror}; check the folder and the disk's free space, or "
            "choose another --workdir"
        ) from None


def _abstract(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


@contextlib.contextmanager
def _disk_errors(folder: pathlib.Path) -> Iterator[None]:
    """Turns a full disk, which Orbax and TensorStore report in several ways, into a UserError."""
    try:
        yield
    except Exception as error:
        if not any(text in str(error) for text in _DISK_IS_FULL):
            raise
        for half_written in folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(half_written, ignore_errors=True)  # it takes up space that is needed
        raise UserError(
            f"the disk is full: cannot write a checkpoint to {folder}; older checkpoints are intact; free some space "
            "and run the same command again to continue"
        ) from error
