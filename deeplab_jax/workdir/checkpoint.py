"""Checkpoints of a training run, written by Orbax and restored on any devices."""

import asyncio
import contextlib
import errno
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from deeplab_jax import budget, files
from deeplab_jax.errors import UserError
from deeplab_jax.parallel import processes
from deeplab_jax.workdir.layout import CHECKPOINTS

logger = logging.getLogger(__name__)

_NO_STEP = -1
_DISK_IS_FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


class Checkpoints:
    """The checkpoints in a workdir. A context manager: leaving it waits for pending writes.

    A checkpoint has three items. `variables` are the variables that evaluation and prediction read, and the only item
    they read; if the run averages its parameters, these are the averages. `training` is the rest of the training state.
    `notes` is JSON: the best score so far, and whatever the run needs back. Each checkpoint also holds the digests of
    its files, and only a checkpoint whose files match is ever restored.

    Args:
      workdir: the workdir of a run.
      keep: number of newest checkpoints to keep, in addition to the best.
      read_only: change nothing, so that a training may continue in the workdir. For evaluation and prediction.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1, read_only: bool = False):
        self.workdir = workdir
        self._folder = workdir.absolute() / CHECKPOINTS
        self._read_only = read_only
        self._policy = _NewestAndBest(keep)
        self._best, self._intact_step = None, None
        # Named here, so that a manager that has not read or written yet can inspect the items.
        handlers = {item: ocp.StandardCheckpointHandler() for item in ("variables", "training")}
        handlers["notes"] = ocp.JsonCheckpointHandler()
        with _quiet_absl():
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                temporary_path_class=_DigestedFolder,
            )
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is None:
            self.wait()
        self._manager.close()

    def found_step(self) -> int | None:
        """Returns the step of the newest checkpoint that this process sees, intact or damaged; None without one."""
        return self._manager.latest_step()

    def latest_step(self) -> int | None:
        """Finds the newest intact checkpoint and returns its step; None if there is no checkpoint yet.

        The first call verifies digests. Newer checkpoints that are damaged are reported and, unless `read_only`,
        renamed to `<step>.damaged`. A collective operation in a run of several processes.

        Raises:
          UserError: there are checkpoints, but all are damaged.
        """
        if self._intact_step is None and self.found_step() is not None:
            # Only one process reads, or processes might choose differently on a failing disk.
            step = self._find_intact_step() if processes.is_leader() else 0
            self._intact_step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
            self._manager.reload()  # some may have been renamed
            if self._intact_step == _NO_STEP:
                raise UserError(
                    f"every checkpoint in {self._folder} is damaged; restore the folder from a copy, or choose another "
                    "--workdir"
                )
        return self._intact_step

    @property
    def best(self) -> dict[str, Any] | None:
        """`step` and `mean_iou` of the run's best evaluation. After a restart it is known once `restore` has run."""
        return self._best

    def record_score(self, step: int, mean_iou: float | None) -> bool:
        """Records the score at `step`. Returns True if it is the best so far; the best checkpoint is kept."""
        if mean_iou is None or (self._best is not None and mean_iou <= self._best["mean_iou"]):
            return False
        self._best = {"step": step, "mean_iou": mean_iou}
        self._policy.best_step = step
        return True

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
        with _disk_errors(self._folder):
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
        with _disk_errors(self._folder):
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
        if self._best is not None:
            self._policy.best_step = self._best["step"]
        return restored.variables, restored.training, restored.notes

    def restore_variables(self, like: PyTree) -> PyTree:
        """Restores the variables of the newest checkpoint, with the shapes and shardings of `like`."""
        restored = self._manager.restore(
            self.latest_step(), args=ocp.args.Composite(variables=ocp.args.StandardRestore(_abstract(like)))
        )
        return restored.variables

    def saved_variables(self, step: int | None = None) -> PyTree:
        """Reads the variables of a checkpoint, whatever their shapes, as NumPy arrays in each process.

        Args:
          step: step of the checkpoint; default: the newest.
        """
        step = self.latest_step() if step is None else step
        metadata = self._manager.item_metadata(step)["variables"]
        self._check_sizes(step, metadata.tree)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), metadata.tree)
        restored = self._manager.restore(step, args=ocp.args.Composite(variables=ocp.args.StandardRestore(like)))
        return jax.device_get(restored.variables)

    def _check_sizes(self, step: int, tree: PyTree) -> None:
        """Checks that the arrays, whose shapes are text in the checkpoint, are no larger than its files can justify."""
        folder = self._folder / str(step)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        left = budget.Budget(f"checkpoint {folder}", size)
        for leaf in jax.tree.leaves(tree):
            left.spend(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize)

    def _find_intact_step(self) -> int:
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = self._folder / str(step)
            damage = files.find_damage(folder)
            if damage is None:
                if not self._read_only:
                    for other in damaged:
                        _rename_damaged(other)
                return step
            damaged.append(folder)
            logger.warning("checkpoint %s is damaged (%s); using the previous one", folder, damage)
        return _NO_STEP  # nothing is renamed, or the next start would find no checkpoint and train from scratch


class _DigestedFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The folder of a checkpoint that is being written. Digests are its last file before it gets its final name."""

    async def finalize(self) -> None:
        if self.get_final().name.isdigit():  # the whole checkpoint, not one of its items
            # Orbax writes the commit time after this; restoring does not need it.
            await asyncio.to_thread(files.write_digests, pathlib.Path(self.get()), exclude=("_CHECKPOINT_METADATA",))
        await super().finalize()


class _NewestAndBest:
    """Tells Orbax which checkpoints to keep: the newest ones and the best."""

    def __init__(self, keep: int):
        self._keep, self.best_step = keep, None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        oldest = max(0, len(checkpoints) - self._keep)
        return [i >= oldest or checkpoint.step == self.best_step for i, checkpoint in enumerate(checkpoints)]


def _rename_damaged(folder: pathlib.Path) -> None:
    target = folder.with_name(f"{folder.name}.damaged")
    if target.exists():  # from an earlier run of the same step
        shutil.rmtree(target)
    folder.rename(target)


def _abstract(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Silences Orbax, which warns through absl about every option that `read_only` implies."""
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl_logger.setLevel(level)


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
