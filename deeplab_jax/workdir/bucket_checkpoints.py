"""Checkpoints of a training run in a bucket.

Orbax writes a checkpoint to the local disk, exactly as in a local workdir, and then its files are uploaded. Nothing is
renamed in a bucket, so `digests.json` is the last object: a checkpoint without it does not exist. To read one, its
files are downloaded and compared with the digests. A download that fails because a training deletes the checkpoint is
not an error, since then there is a newer one, so readers need no locks.

In a run of several processes, the first one writes everything: it gets the shards of the others over the network.
"""

import contextlib
import logging
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from deeplab_jax import files
from deeplab_jax.parallel import processes
from deeplab_jax.storage import BucketPath, client
from deeplab_jax.storage.local_copies import scratch_folder
from deeplab_jax.workdir.checkpoint import Checkpoints
from deeplab_jax.workdir.checkpoint_rules import NO_STEP, BestScore, damaged_error, vanishing_error
from deeplab_jax.workdir.layout import CHECKPOINTS, checkpoint_steps

logger = logging.getLogger(__name__)

_DAMAGED = f"{files.DIGESTS_FILE}.damaged"  # in place of the digests of a checkpoint that is set aside
_VANISHING_SECONDS = 300  # how long a reader looks for a checkpoint that is not deleted while it downloads


class BucketCheckpoints(BestScore):
    """The checkpoints of a workdir in a bucket, with the interface of `Checkpoints`.

    Args:
      workdir: see `Checkpoints`.
      keep: see `Checkpoints`.
      read_only: see `Checkpoints`.
      step: see `Checkpoints`.
      check_lock: raises `UserError` if another training has taken over; called before a checkpoint becomes visible.
    """

    def __init__(
        self,
        workdir: BucketPath,
        *,
        keep: int = 1,
        read_only: bool = False,
        step: int | None = None,
        check_lock: Callable[[], None] = lambda: None,
    ):
        self.workdir, self._folder = workdir, workdir / CHECKPOINTS
        self._keep, self._only, self._read_only, self._check_lock = keep, step, read_only, check_lock
        self._best_saved_step, self._intact_step = None, None
        self._stack = contextlib.ExitStack()
        scratch = self._stack.enter_context(scratch_folder())
        self._downloads, self._reader = scratch / "downloads", None
        self._writer = None
        if not read_only and processes.is_leader():
            self._writer = Checkpoints(scratch / "new", alone=True, after_save=self._publish)

    def __enter__(self) -> "BucketCheckpoints":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        with self._stack:
            if self._writer is not None:
                self._writer.__exit__(kind, value, traceback)
            self._close_reader()

    def found_step(self) -> int | None:
        """Returns the step of the newest checkpoint in the bucket, intact or damaged; None without one."""
        return max(self._steps(), default=None)

    def _steps(self) -> list[int]:
        return [step for step in checkpoint_steps(self.workdir) if self._only in (None, step)]

    def latest_step(self) -> int | None:
        """See `Checkpoints.latest_step`. Damaged checkpoints are set aside under their digests' other name."""
        if self._intact_step is None and self.found_step() is not None:
            step = self._download_intact() if processes.is_leader() else 0
            self._intact_step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
            if self._intact_step == NO_STEP:
                raise damaged_error(self._folder, self._only)
            if not processes.is_leader():
                self._download(self._intact_step)
        return self._intact_step

    def save(self, step: int, *, variables: PyTree, training: PyTree, notes: dict[str, Any] | None = None) -> None:
        """See `Checkpoints.save`. The upload is a part of what happens in the background."""
        if step == self.latest_step():
            return
        if jax.process_count() > 1:
            variables, training = (jax.tree.map(_gather, tree) for tree in (variables, training))
        if self._writer is not None:
            self._check_lock()
            self._writer.wait()
            self._best_saved_step = None if self._best is None else self._best["step"]
            self._writer.save(step, variables=variables, training=training, notes={**(notes or {}), "best": self._best})
        self._intact_step = step

    def wait(self) -> None:
        """Waits until the last checkpoint is in the bucket."""
        if self._writer is not None:
            self._writer.wait()

    def restore(self, *, variables: PyTree, training: PyTree) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """See `Checkpoints.restore`."""
        like = {"variables": variables, "training": training}
        restored = self._open().restore(**_readable(like))
        self._best = restored[2]["best"]
        return _place(restored[0], variables), _place(restored[1], training), restored[2]

    def restore_variables(self, like: PyTree) -> PyTree:
        """See `Checkpoints.restore_variables`."""
        return _place(self._open().restore_variables(_readable(like)), like)

    def saved_variables(self, step: int | None = None) -> PyTree:
        """See `Checkpoints.saved_variables`."""
        return self._open(step).saved_variables(step)

    def _open(self, step: int | None = None) -> Checkpoints:
        """Opens the local copy of a checkpoint, by default the newest."""
        step = self.latest_step() if step is None else step
        self._download(step)
        self._close_reader()
        self._reader = Checkpoints(self._downloads, read_only=True, step=step, alone=True)
        return self._reader

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.__exit__(None, None, None)
            self._reader = None

    def _download_intact(self) -> int:
        """Downloads the newest intact checkpoint and returns its step; `NO_STEP` if all are damaged."""
        damaged: dict[int, None] = {}
        deadline = time.monotonic() + _VANISHING_SECONDS
        while True:
            steps, has_vanished = self._steps(), False
            for step in steps:
                try:
                    damage = files.find_damage(self._download(step))
                except FileNotFoundError:
                    # A training deletes the digests first. If they are still there, another file is missing.
                    has_vanished = step not in self._steps()
                    damage = "a file is missing"
                if has_vanished:
                    break
                if damage is None:
                    if not self._read_only:
                        for other in damaged:
                            self._set_aside(other)
                    return step
                if step not in damaged:
                    damaged[step] = None
                    folder = self._folder / str(step)
                    logger.warning("checkpoint %s is damaged (%s); using the previous one", folder, damage)
                shutil.rmtree(self._downloads / CHECKPOINTS / str(step), ignore_errors=True)
            if steps and not has_vanished:
                return NO_STEP
            if time.monotonic() > deadline:
                raise vanishing_error(self._folder)

    def _download(self, step: int) -> pathlib.Path:
        """Downloads a checkpoint unless it is here; returns its local folder.

        Raises:
          FileNotFoundError: the checkpoint is deleted, or one of its files is missing.
        """
        source, target = self._folder / str(step), self._downloads / CHECKPOINTS / str(step)
        if not target.exists():
            partial = target.with_name(f"{step}.part")
            shutil.rmtree(partial, ignore_errors=True)
            names = [entry.name for entry in client.list_files(source)]
            if files.DIGESTS_FILE not in names:
                raise FileNotFoundError(2, "No such checkpoint", str(source))
            client.download([(source / name, partial / name) for name in names])
            partial.rename(target)
        return target

    def _set_aside(self, step: int) -> None:
        digests = self._folder / str(step) / files.DIGESTS_FILE
        digests.with_name(_DAMAGED).write_bytes(digests.read_bytes())
        digests.unlink()

    def _publish(self, folder: pathlib.Path) -> None:
        """Uploads a checkpoint and deletes older ones."""
        target = self._folder / folder.name
        self._delete(target)  # left by a training that was killed
        names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        client.upload([(folder / name, target / name) for name in names if str(name) != files.DIGESTS_FILE])
        self._check_lock()
        client.upload([(folder / files.DIGESTS_FILE, target / files.DIGESTS_FILE)])
        self._delete_old()

    def _delete_old(self) -> None:
        """Deletes all checkpoints but the newest, the best, and damaged ones, and what is left of incomplete ones."""
        complete = checkpoint_steps(self.workdir)
        kept = {str(step) for step in (*complete[: self._keep], self._best_saved_step)}
        found = [entry.name.split("/") for entry in client.list_files(self._folder)]
        kept |= {step for step, *file in found if file == [_DAMAGED]}
        for step in {step for step, *_ in found} - kept:
            self._delete(self._folder / step)

    def _delete(self, folder: BucketPath) -> None:
        """Deletes a checkpoint, the digests first."""
        client.delete([folder / files.DIGESTS_FILE])
        client.delete([folder / entry.name for entry in client.list_files(folder)])


def open_checkpoints(
    workdir: pathlib.Path, *, check_lock: Callable[[], None] = lambda: None, **options: Any
) -> Checkpoints | BucketCheckpoints:
    """Opens the checkpoints of a workdir, on the local disk or in a bucket; see both classes."""
    if isinstance(workdir, BucketPath):
        return BucketCheckpoints(workdir, check_lock=check_lock, **options)
    return Checkpoints(workdir, **options)


def _gather(leaf: jax.Array) -> np.ndarray:
    """Returns all of an array whose shards may be on other processes. A collective operation."""
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _readable(like: PyTree) -> PyTree:
    """The shapes to restore to: those of `like`, on one device if other processes have a part of them."""
    if jax.process_count() == 1:
        return like
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)


def _place(restored: PyTree, like: PyTree) -> PyTree:
    """Distributes what `_readable` has restored."""
    if jax.process_count() == 1:
        return restored

    def place(value: jax.Array, leaf: Any) -> jax.Array:
        host = np.asarray(value)
        return jax.make_array_from_callback(host.shape, leaf.sharding, lambda index: host[index])

    return jax.tree.map(place, restored, like)
