"""The manager of Orbax that writes and reads the checkpoints of a folder."""

import asyncio
import contextlib
import logging
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import orbax.checkpoint as ocp

from deeplab_jax import files

#: Seconds for which a reader looks for a checkpoint that is not deleted, and those between two looks.
VANISHING_SECONDS, VANISHING_PAUSE = 30, 0.02


def open_manager(
    folder: pathlib.Path, *, read_only: bool, alone: bool, after_save: Callable[[], None]
) -> ocp.CheckpointManager:
    """Opens the manager of a folder.

    Orbax itself keeps every checkpoint. The manager lists the checkpoints, one of which a training may just delete.

    Args:
      folder: the folder, which exists.
      read_only: change nothing.
      alone: only this process of the run reads and writes.
      after_save: called in a thread when a checkpoint has its final name.
    """
    share = {"multiprocessing_options": _only_this_process() if alone else ocp.options.MultiprocessingOptions()}
    # Named here, so that a manager that has not read or written yet can inspect the items.
    handlers = {item: ocp.StandardCheckpointHandler(**share) for item in ("variables", "training")}
    handlers["notes"] = ocp.JsonCheckpointHandler(**share)
    with quiet_absl():
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            temporary_path_class=type("Folder", (_DigestedFolder,), {"after_save": staticmethod(after_save)}),
            create=False,
            **share,
        )
        deadline = time.monotonic() + VANISHING_SECONDS
        while True:
            try:
                return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
            except FileNotFoundError:
                if not read_only or time.monotonic() > deadline:
                    raise
            time.sleep(VANISHING_PAUSE)


@contextlib.contextmanager
def quiet_absl() -> Iterator[None]:
    """Silences Orbax, which warns of every option that `read_only` implies, and when the last save takes a second."""
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl_logger.setLevel(level)


class _DigestedFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The folder of a checkpoint that is being written. Digests are its last file before it gets its final name."""

    async def finalize(self) -> None:
        if not self.get_final().name.isdigit():  # one of its items
            await super().finalize()
            return
        # Orbax writes the commit time after this; restoring does not need it.
        await asyncio.to_thread(files.write_digests, pathlib.Path(self.get()), exclude=("_CHECKPOINT_METADATA",))
        await super().finalize()
        await asyncio.to_thread(self.after_save)


def _only_this_process() -> ocp.options.MultiprocessingOptions:
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )
