"""The files of a training run: its config and classes, and the lock that keeps other trainings out of its workdir."""

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_json
from deeplab_jax.labels import LabelSet
from deeplab_jax.parallel import processes

#: The folder of a workdir that holds its checkpoints, each in a folder named by its step.
CHECKPOINTS = "checkpoints"

# A run continues only under the config that it began with; the rest of a config may change at any time.
_FIXED_GROUPS = ("model", "data", "train", "optimizer", "loss")
# `zero_unreached_taps` acts on the first state alone, and a run that is compared has a checkpoint.
_FREE_FIELDS = (
    "model.zero_unreached_taps", "data.data_dir", "data.workers", "data.eval_split", "data.unreadable",
    "train.nonfinite", "train.remat",
)  # fmt: skip
_CONFIG_FILE, _LABELS_FILE, _LOCK_FILE = "config.json", "labels.json", "lock"


def begin(workdir: pathlib.Path, config: ConfigDict, label_set: LabelSet) -> None:
    """Writes a run's config and classes; if the workdir has checkpoints already, checks that they are of the same run.

    A run that ended before its first checkpoint has nothing to continue: what begins in its workdir takes its place.

    Raises:
      UserError: the folder cannot be written, or its run has another config.
    """
    path = workdir / _CONFIG_FILE
    if path.exists() and _has_checkpoint(workdir):
        differences = config_lib.differences(config, read_config(workdir), groups=_FIXED_GROUPS)
        lines = [line for field, line in differences.items() if field not in _FREE_FIELDS]
        if lines:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(lines)}); choose another --workdir, or give the "
                "run's own values to continue it"
            )
    if not processes.is_leader():
        return
    write_json(path, config_lib.to_saved(config))
    write_json(workdir / _LABELS_FILE, {"class_names": label_set.class_names, "palette": label_set.palette})


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the workdir and keeps other trainings out of it.

    The system lets go of it when this process ends, however it ends.

    Raises:
      UserError: it cannot be made, or another training runs in it.
    """
    if not processes.is_leader():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be made: {error.strerror}") from None
    if os.name != "posix":
        yield
        return
    import fcntl

    with (workdir / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another training runs in {workdir}; end it, or choose another --workdir") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a disk that knows no locks
                raise
        yield


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """The config of the run in a workdir.

    Raises:
      UserError: the folder holds no run.
    """
    values = _read_json(workdir, _CONFIG_FILE)
    try:
        return config_lib.from_saved(values)
    except UserError as error:
        raise UserError(f"{workdir / _CONFIG_FILE}: {error}") from None
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


def _has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether there is one, whole or damaged; what is named otherwise is half-written or set aside."""
    folder = workdir / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


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
