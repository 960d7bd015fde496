"""Checkpoints of a training run: state, data position and config, written by Orbax, restored on any devices."""

import errno
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import LabelSet
from deeplab_jax.train_state import TrainState

# A run continues only under the config that it began with; the rest of a config may change at any time.
_FIXED_GROUPS = ("model", "data", "train", "optimizer", "loss")
_FREE_FIELDS = ("data.data_dir", "data.workers", "data.eval_split")
_CONFIG_FILE, _LABELS_FILE, _FOLDER = "config.json", "labels.json", "checkpoints"


class Checkpoints:
    """The checkpoints in a workdir. A context manager: leaving it waits for what is still being written.

    `variables` (what `model.apply` takes) and `training` (the rest of the state) are separate items, so that
    evaluation and prediction read only the first.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1):
        self._folder = workdir.absolute() / _FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        # Named here, so that a manager that has not written or read yet knows how to look into them.
        handlers = {item: ocp.StandardCheckpointHandler() for item in ("variables", "training")}
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is None:
            with _disk_errors(self._folder):
                self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes the state in the background under its step; a checkpoint exists whole or not at all.

        Raises:
          UserError: the disk has no room, now or for the checkpoint before this one.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes"))
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
                    variables=ocp.args.StandardSave(state.variables),
                    training=ocp.args.StandardSave(_training_part(state)),
                ),
            )

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint, with the shapes and shardings of `like` (arrays or ShapeDtypeStructs)."""
        restored = self._manager.restore(
            self.latest_step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(_abstract(like.variables)),
                training=ocp.args.StandardRestore(_abstract(_training_part(like))),
            ),
        )
        return like.replace(**restored.variables, **restored.training)

    def restore_variables(self, like: Any) -> Any:
        """Parameters and batch statistics of the newest checkpoint, with the shapes and shardings of `like`."""
        restored = self._manager.restore(
            self.latest_step, args=ocp.args.Composite(variables=ocp.args.StandardRestore(_abstract(like)))
        )
        return restored.variables

    def saved_variables(self, step: int | None = None) -> Any:
        """Parameters and batch statistics of a checkpoint, whatever their shapes, on the default device.

        Args:
          step: of the checkpoint; default: the newest.
        """
        step = self.latest_step if step is None else step
        metadata = self._manager.item_metadata(step)["variables"]
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), metadata.tree)
        return self._manager.restore(step, args=ocp.args.Composite(variables=ocp.args.StandardRestore(like))).variables


def begin_workdir(workdir: pathlib.Path, config: ConfigDict, labels: LabelSet) -> None:
    """Writes a run's config and classes; if the workdir holds a run already, checks that it is the same one.

    Raises:
      UserError: the folder cannot be written, or its run has another config.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be made: {error.strerror}") from None
    path = workdir / _CONFIG_FILE
    if path.exists():
        differences = config_lib.differences(config, read_config(workdir), groups=_FIXED_GROUPS)
        lines = [line for field, line in differences.items() if field not in _FREE_FIELDS]
        if lines:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(lines)}); choose another --workdir, or give the "
                "run's own values to continue it"
            )
    write_json(path, config_lib.to_dict(config))
    write_json(workdir / _LABELS_FILE, {"class_names": labels.class_names, "palette": labels.palette})


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """The config of the run in a workdir.

    Raises:
      UserError: the folder holds no run.
    """
    values = _read_json(workdir, _CONFIG_FILE)
    try:
        return config_lib.from_dict(values)
    except TypeError as error:
        raise UserError(f"{workdir / _CONFIG_FILE} is damaged: {error}") from None


def read_labels(workdir: pathlib.Path) -> LabelSet:
    """The classes of the run in a workdir.

    Raises:
      UserError: the folder holds no run.
    """
    values = _read_json(workdir, _LABELS_FILE)
    try:
        return LabelSet(tuple(values["class_names"]), tuple(tuple(color) for color in values["palette"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{workdir / _LABELS_FILE} is damaged: {error}") from None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part.

    Raises:
      UserError: the file cannot be written; nothing is left half-written.
    """
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def _read_json(workdir: pathlib.Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads((workdir / name).read_text())
    except FileNotFoundError:
        raise UserError(f"{workdir} holds no run: there is no {name} in it; `deeplab-jax train` writes one") from None
    except ValueError as error:
        raise UserError(f"{workdir / name} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{workdir / name} is damaged: it holds no JSON object")
    return values


def _training_part(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("step", "examples_seen", "opt_state", "rng")}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


class _disk_errors:  # noqa: N801 - used as a `with` statement
    """Turns a full disk, which Orbax and TensorStore report in several ways, into one line."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is None or not isinstance(error, Exception):
            return
        text = str(error)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            for half_written in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half_written, ignore_errors=True)  # it takes the room that is missing
            raise UserError(
                f"the disk is full: no checkpoint could be written to {self._folder}; older checkpoints are whole; "
                "make room and run the same command again to continue"
            ) from error
