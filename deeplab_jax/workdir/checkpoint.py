"""Checkpoints of a training run: state, data position and config, written by Orbax, restored on any devices."""

import asyncio
import contextlib
import errno
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from rich.console import Console

from deeplab_jax import files
from deeplab_jax.errors import UserError
from deeplab_jax.parallel import processes
from deeplab_jax.training.state import TrainState
from deeplab_jax.workdir.layout import CHECKPOINTS

_NO_STEP = -1
_DISK_IS_FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


class Checkpoints:
    """The checkpoints in a workdir. A context manager: leaving it waits for what is still being written.

    `variables` (what evaluation and prediction use: of the averaged parameters, if there are any) and `training` (the
    rest of the state) are separate items, so that evaluation and prediction read only the first. `notes` is JSON: the
    best score so far and whatever else the run wants back. Each checkpoint holds the digests of its files, and only one
    whose files still have them is ever restored.

    Args:
      workdir: of the run.
      keep: how many of the newest checkpoints are kept, besides the best.
      read_only: for those who do not train: changes nothing, so that a training may go on in the workdir.
      console: where a damaged checkpoint is reported; None is silent.
    """

    def __init__(
        self, workdir: pathlib.Path, *, keep: int = 1, read_only: bool = False, console: Console | None = None
    ):
        self._folder = workdir.absolute() / CHECKPOINTS
        self._read_only, self._console = read_only, console
        self._policy = _NewestAndBest(keep)
        self._best, self._whole_step = None, None
        # Named here, so that a manager that has not written or read yet knows how to look into them.
        handlers = {item: ocp.StandardCheckpointHandler() for item in ("variables", "training")}
        handlers["notes"] = ocp.JsonCheckpointHandler()
        with _without_remarks():
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

    @property
    def found_step(self) -> int | None:
        """The step of the newest checkpoint, whole or damaged, in this process' eyes."""
        return self._manager.latest_step()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, None if there is none yet.

        Newer ones that are damaged are reported and, unless `read_only`, renamed to `<step>.damaged`.

        Raises:
          UserError: there are checkpoints, but every one is damaged.
        """
        if self._whole_step is None and self.found_step is not None:
            # One process looks, or processes that read a failing disk might choose differently.
            step = self._find_whole_step() if processes.is_leader() else 0
            self._whole_step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
            self._manager.reload()  # some may have been renamed
            if self._whole_step == _NO_STEP:
                raise UserError(
                    f"every checkpoint in {self._folder} is damaged; restore the folder from a copy, or choose another "
                    "--workdir"
                )
        return self._whole_step

    @property
    def best(self) -> dict[str, Any] | None:
        """`step` and `mean_iou` of the run's best evaluation; after a restart, once the state is restored."""
        return self._best

    def is_best(self, step: int, mean_iou: float | None) -> bool:
        """Takes the score of the state after `step`; true if it is the run's best so far, whose checkpoint stays."""
        if mean_iou is None or (self._best is not None and mean_iou <= self._best["mean_iou"]):
            return False
        self._best = {"step": step, "mean_iou": mean_iou}
        self._policy.best_step = step
        return True

    def save(self, state: TrainState, notes: dict[str, Any] | None = None) -> None:
        """Writes the state in the background under its step; a checkpoint exists whole or not at all.

        Args:
          state: the next step may donate it.
          notes: what JSON can hold.

        Raises:
          UserError: the disk has no room, now or for the checkpoint before this one.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise UserError(
                f"no room for a checkpoint in {self._folder}: it needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are "
                "free; make room and run the same command again to continue"
            )
        with _disk_errors(self._folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(state.evaluated_variables),
                    training=ocp.args.StandardSave(_training_part(state)),
                    notes=ocp.args.JsonSave({"best": self._best, **(notes or {})}),
                ),
                force=True,
            )
        self._whole_step = step

    def wait(self) -> None:
        """Returns when the last checkpoint is whole on the disk.

        Raises:
          UserError: the disk had no room for it.
        """
        with _disk_errors(self._folder):
            self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint's state, with the shapes and shardings of `like` (arrays or ShapeDtypeStructs).

        Returns:
          The state and the notes it was saved with.
        """
        restored = self._manager.restore(
            self.latest_step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(_abstract(like.evaluated_variables)),
                training=ocp.args.StandardRestore(_abstract(_training_part(like))),
                notes=ocp.args.JsonRestore(),
            ),
        )
        self._best = restored.notes["best"]
        if self._best is not None:
            self._policy.best_step = self._best["step"]
        return like.with_evaluated(restored.variables, **restored.training), restored.notes

    def restore_variables(self, like: Any) -> Any:
        """Parameters and batch statistics of the newest checkpoint, with the shapes and shardings of `like`."""
        restored = self._manager.restore(
            self.latest_step, args=ocp.args.Composite(variables=ocp.args.StandardRestore(_abstract(like)))
        )
        return restored.variables

    def saved_variables(self, step: int | None = None) -> Any:
        """Parameters and batch statistics of a checkpoint, whatever their shapes, as NumPy arrays in each process.

        Args:
          step: of the checkpoint; default: the newest.
        """
        step = self.latest_step if step is None else step
        metadata = self._manager.item_metadata(step)["variables"]
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), metadata.tree)
        restored = self._manager.restore(step, args=ocp.args.Composite(variables=ocp.args.StandardRestore(like)))
        return jax.device_get(restored.variables)

    def _find_whole_step(self) -> int:
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
            if self._console is not None:
                self._console.print(
                    f"checkpoint {folder} is damaged ({damage}); the one before it is used",
                    soft_wrap=True,
                    highlight=False,
                    markup=False,
                )
        return _NO_STEP  # and none is renamed, or the next start would find no checkpoint and begin anew


class _DigestedFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A checkpoint's folder while it is written: its digests are the last file before it gets its name."""

    async def finalize(self) -> None:
        if self.get_final().name.isdigit():  # the whole, not one of its items
            # Orbax writes its time of committing after this, which restoring does not need.
            await asyncio.to_thread(files.write_digests, pathlib.Path(self.get()), exclude=("_CHECKPOINT_METADATA",))
        await super().finalize()


class _NewestAndBest:
    """Which checkpoints Orbax does not delete."""

    def __init__(self, keep: int):
        self._keep, self.best_step = keep, None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        oldest = max(0, len(checkpoints) - self._keep)
        return [i >= oldest or checkpoint.step == self.best_step for i, checkpoint in enumerate(checkpoints)]


def _training_part(state: TrainState) -> dict[str, Any]:
    """What `evaluated_variables` leaves out."""
    part = {name: getattr(state, name) for name in ("step", "examples_seen", "opt_state", "rng")}
    return part if state.ema_variables is None else part | state.variables


def _rename_damaged(folder: pathlib.Path) -> None:
    target = folder.with_name(f"{folder.name}.damaged")
    if target.exists():  # of the same step, earlier
        shutil.rmtree(target)
    folder.rename(target)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Silences what Orbax warns of through absl: each option that reading alone implies."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _disk_errors(folder: pathlib.Path) -> Iterator[None]:
    """Turns a full disk, which Orbax and TensorStore report in several ways, into one line."""
    try:
        yield
    except Exception as error:
        if not any(text in str(error) for text in _DISK_IS_FULL):
            raise
        for half_written in folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(half_written, ignore_errors=True)  # it takes the room that is missing
        raise UserError(
            f"the disk is full: no checkpoint could be written to {folder}; older checkpoints are whole; "
            "make room and run the same command again to continue"
        ) from error
