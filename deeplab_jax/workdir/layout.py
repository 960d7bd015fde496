"""The files of a workdir: the config and classes of a run, and the lock that keeps a second training out."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import budget
from deeplab_jax import config as config_lib
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_json
from deeplab_jax.labels import LabelSet
from deeplab_jax.parallel import processes

#: Folder of a workdir that holds the checkpoints, one folder per step.
CHECKPOINTS = "checkpoints"

# A run continues only with the config it started with. All other fields may change between two starts.
_FIXED_GROUPS = ("model", "data", "train", "optimizer", "loss")
# `zero_unreached_taps` only affects the first state, and a run that is compared already has a checkpoint.
_FREE_FIELDS = (
    "model.zero_unreached_taps", "data.data_dir", "data.workers", "data.eval_split", "data.unreadable",
    "train.nonfinite", "train.remat",
)  # fmt: skip
_CONFIG_FILE, _LABELS_FILE, _LOCK_FILE = "config.json", "labels.json", "lock"


def write_config(workdir: pathlib.Path, config: ConfigDict, label_set: LabelSet) -> None:
    """Writes the config and the classes of a run. If the workdir has checkpoints, checks that they are of the same run.

    A run that stopped before its first checkpoint has nothing to continue, so a new one replaces it.

    Raises:
      UserError: the folder is not writable, or its run has a different config.
    """
    path = workdir / _CONFIG_FILE
    if path.exists() and _has_checkpoint(workdir):
        differences = config_lib.differences(config, read_config(workdir), groups=_FIXED_GROUPS)
        lines = [line for field, line in differences.items() if field not in _FREE_FIELDS]
        if lines:
            raise UserError(
                f"{workdir} holds a run with a different config ({'; '.join(lines)}); choose another --workdir, or "
                "pass the run's own values to continue it"
            )
    if not processes.is_leader():
        return
    write_json(path, config_lib.to_saved(config))
    write_json(workdir / _LABELS_FILE, {"class_names": label_set.class_names, "palette": label_set.palette})


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Creates the workdir if needed and keeps other trainings out of it.

    The operating system releases the lock when this process exits, for whatever reason.

    Raises:
      UserError: the folder cannot be created, or another training is running in it.
    """
    if not processes.is_leader():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create workdir {workdir}: {error.strerror}") from None
    if os.name != "posix":
        yield
        return
    import fcntl

    with (workdir / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another training is running in {workdir}; stop it, or choose another --workdir") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a disk without locks
                raise
        yield


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """Reads the config of the run in a workdir.

    Raises:
      UserError: there is no run in the folder, or the file is damaged.
    """
    values = _read_json(workdir, _CONFIG_FILE)
    try:
        return config_lib.from_saved(values)
    except UserError as error:
        raise UserError(f"{workdir / _CONFIG_FILE}: {error}") from None
    except TypeError as error:
        raise UserError(f"{workdir / _CONFIG_FILE} is damaged: {error}") from None


def read_labels(workdir: pathlib.Path) -> LabelSet:
    """Reads the class names and the palette of the run in a workdir.

    Raises:
      UserError: there is no run in the folder, or the file is damaged.
    """
    values = _read_json(workdir, _LABELS_FILE)
    try:
        return LabelSet(tuple(values["class_names"]), tuple(tuple(color) for color in values["palette"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{workdir / _LABELS_FILE} is damaged: {error}") from None


def _has_checkpoint(workdir: pathlib.Path) -> bool:
    """True if there is a checkpoint, intact or damaged. Folders with other names are incomplete or set aside."""
    folder = workdir / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def _read_json(workdir: pathlib.Path, name: str) -> dict[str, Any]:
    try:
        values = budget.read_json(workdir / name)
    except FileNotFoundError:
        raise UserError(f"{workdir} does not hold a run: it has no {name}; `deeplab-jax train` writes one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir / name} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{workdir / name} is damaged: it is not a JSON object")
    return values
