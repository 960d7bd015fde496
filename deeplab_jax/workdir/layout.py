"""The files of a workdir: the config, classes and data of a run, and the lock that keeps a second training out."""

import contextlib
import errno
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import data
from deeplab_jax.errors import UserError
from deeplab_jax.files import DIGESTS_FILE, create_folder, file_digest, read_json, write_json
from deeplab_jax.labels import LabelSet
from deeplab_jax.parallel import processes
from deeplab_jax.storage import BucketPath, client, lease

logger = logging.getLogger(__name__)

#: Folder of a workdir that holds the checkpoints, one folder per step.
CHECKPOINTS = "checkpoints"

# A run continues only with the config it started with. All other fields may change between two starts.
_FIXED_GROUPS = ("model", "data", "unlabeled", "train", "optimizer", "loss")
# `zero_unreached_taps` only affects the first state, and a run that is compared already has a checkpoint.
_FREE_FIELDS = (
    "model.zero_unreached_taps", "data.data_dir", "data.workers", "data.eval_split", "data.display_channels",
    "data.unreadable", "train.nonfinite", "train.remat",
)  # fmt: skip
# These change with `--extend`.
_EXTENDABLE_FIELDS = ("train.duration", "train.patience")
_CONFIG_FILE, _LABELS_FILE, _LOCK_FILE = "config.json", "labels.json", "lock"

#: File of a workdir with the fingerprints of its data.
DATA_FILE = "data.json"


def results_of_checkpoint(step: int) -> str:
    """Returns the end of the names of results of a checkpoint that is not the newest, before the suffix of the file."""
    return f"-checkpoint={step}"


def write_config(
    workdir: pathlib.Path,
    config: ConfigDict,
    label_set: LabelSet,
    fingerprints: dict[str, dict[str, Any]],
    *,
    extend: bool = False,
) -> None:
    """Writes the config, classes and data of a run. If the workdir has checkpoints, they must be of the same run.

    A run that stopped before its first checkpoint has nothing to continue, so a new one replaces it.

    Args:
      workdir: the workdir.
      config: a whole config.
      label_set: the classes of the data set.
      fingerprints: `deeplab_jax.data.fingerprint` of the data to `train` and to `evaluate` on, and of the images to
        train on that are `unlabeled`, if there are any.
      extend: the run may continue with another `train.duration` and `train.patience`.

    Raises:
      UserError: the folder is not writable, or its run has a different config, other classes or other training data.
    """
    if checkpoint_steps(workdir):
        check_same_run(workdir, config, fingerprints, extend=extend)
    if not processes.is_leader():
        return
    write_json(workdir / _CONFIG_FILE, config_lib.to_saved(config))
    write_json(workdir / _LABELS_FILE, {"class_names": label_set.class_names, "palette": label_set.palette})
    write_json(workdir / DATA_FILE, fingerprints)


def check_same_run(
    workdir: pathlib.Path, config: ConfigDict, fingerprints: dict[str, dict[str, Any]], *, extend: bool = False
) -> None:
    """Raises a UserError if the run in a workdir has a different config, other classes or other training data.

    The arguments are those of `write_config`.
    """
    _check_config(workdir, config, _EXTENDABLE_FIELDS if extend else ())
    _check_data(workdir, fingerprints)


def write_stages(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes the config of a training in stages to the folder that holds the workdirs of its stages.

    Raises:
      UserError: the folder is not writable, or holds a run with other stages or without any.
    """
    if (workdir / _CONFIG_FILE).exists():
        before, now = (config_lib.stage_names(each) for each in (read_config(workdir), config))
        if before != now:
            raise UserError(
                f"{workdir} holds a run {f'with the stages {_join(before)}' if before else 'without stages'}, and this "
                f"config has the stages {_join(now)}; choose another --workdir"
            )
    if processes.is_leader():
        write_json(workdir / _CONFIG_FILE, config_lib.to_saved(config))


def last_stage(workdir: pathlib.Path) -> pathlib.Path:
    """Returns the workdir of the last stage of a training in stages, or the workdir itself if there are no stages."""
    path = workdir / _CONFIG_FILE
    stages = read_json(path).get("stages") if path.is_file() else None  # saved networks have such a file, too
    if not isinstance(stages, dict) or not stages:
        return workdir
    return workdir / config_lib.stage_names(ConfigDict({"stages": stages}))[-1]


def checkpoint_digest(workdir: pathlib.Path, step: int) -> str | None:
    """Returns a digest of the content of a checkpoint; None if a training has removed it."""
    try:
        return file_digest(workdir / CHECKPOINTS / str(step) / DIGESTS_FILE)
    except OSError:
        return None


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints in a workdir, intact or damaged, newest first.

    Folders with other names are incomplete or set aside, and so are folders in a bucket that have no digests yet.

    Raises:
      UserError: the folder cannot be read.
    """
    folder = workdir / CHECKPOINTS
    if isinstance(folder, BucketPath):
        files = (entry.name.split("/") for entry in client.list_files(folder))
        return sorted((int(step) for step, *file in files if step.isdigit() and file == [DIGESTS_FILE]), reverse=True)
    try:
        return sorted((int(name) for name in os.listdir(folder) if name.isdigit()), reverse=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"cannot read the checkpoints in {folder}: {error.strerror}; it must be a readable folder"
        ) from None


def _check_config(workdir: pathlib.Path, config: ConfigDict, may_differ: tuple[str, ...]) -> None:
    for name in (_CONFIG_FILE, _LABELS_FILE):
        if not (workdir / name).exists():
            raise UserError(
                f"{workdir} has checkpoints but no {name}, so the run cannot be continued; restore the file from a "
                "copy, or choose another --workdir"
            )
    differences = config_lib.differences(config, read_config(workdir, for_training=True), groups=_FIXED_GROUPS)
    fields = [field for field in differences if field not in (*_FREE_FIELDS, *may_differ)]
    lines = [differences[field] for field in fields]
    if fields and all(field in _EXTENDABLE_FIELDS for field in fields):
        raise UserError(
            f"{workdir} holds a run with {'; '.join(lines)}; pass --extend to continue it for another duration, or "
            "choose another --workdir"
        )
    if lines:
        raise UserError(
            f"{workdir} holds a run with a different config ({'; '.join(lines)}); choose another --workdir, or "
            "pass the run's own values to continue it"
        )


def _check_data(workdir: pathlib.Path, fingerprints: dict[str, dict[str, Any]]) -> None:
    """Compares the data with that of the run; a run of an older version has only stored its classes."""
    stored = read_json(workdir / DATA_FILE) if (workdir / DATA_FILE).exists() else {}
    classes = {"class_names": list(read_labels(workdir).class_names)}
    try:
        # Data that an older version has not stored, or that this run does not read, is not compared.
        trained = {role: fingerprints[role] for role in ("train", "unlabeled") if role in fingerprints}
        changes = (data.describe_change(stored.get(role, now | classes), now) for role, now in trained.items())
        change = next(filter(None, changes), None)
        # The evaluation does not change the training, so it may use other data: a split of another name.
        before = stored.get("evaluate", fingerprints["evaluate"])
        scores_change = data.describe_change(before, fingerprints["evaluate"])
        is_same_split = list(before["splits"]) == list(fingerprints["evaluate"]["splits"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{workdir / DATA_FILE} is damaged: {error!r}; restore it from a copy, or delete it") from None
    if change is not None:
        raise UserError(
            f"the data of the run in {workdir} has changed: {change}; prepare the data set as it was to continue the "
            "run, or choose another --workdir"
        )
    if scores_change is not None and is_same_split:
        logger.warning("the evaluation data has changed: %s; earlier scores are not comparable", scores_change)


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[Callable[[], None]]:
    """Creates the workdir if needed and keeps other trainings out of it.

    The operating system releases the lock when this process exits, for whatever reason. In a bucket, the lock is a
    lease, which this process can lose.

    Yields:
      A function that checks that the lock is still held, and raises `UserError` if not.

    Raises:
      UserError: the folder cannot be created, or another training is running in it.
    """
    if not processes.is_leader():
        yield _still_held
        return
    create_folder(workdir, "workdir")
    if isinstance(workdir, BucketPath):
        held = lease.Lease(workdir / _LOCK_FILE)
        held.acquire()
        try:
            yield held.check
        finally:
            held.release()
    else:
        with _lock_folder(workdir):
            yield _still_held


def _still_held() -> None:
    """A lock of the operating system is held until the process ends."""


@contextlib.contextmanager
def _lock_folder(workdir: pathlib.Path) -> Iterator[None]:
    if os.name != "posix":
        yield
        return
    import fcntl

    try:
        file = (workdir / _LOCK_FILE).open("w")
    except OSError as error:
        raise UserError(
            f"cannot write {workdir / _LOCK_FILE}: {error.strerror}; check the folder, or choose another --workdir"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another training is running in {workdir}; stop it, or choose another --workdir") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a disk without locks
                raise
        yield


def is_locked(workdir: pathlib.Path) -> bool:
    """True if a training is running in a workdir. False where the system has no locks."""
    if isinstance(workdir, BucketPath):
        return lease.is_held(workdir / _LOCK_FILE)
    if os.name != "posix" or not (workdir / _LOCK_FILE).exists():
        return False
    import fcntl

    try:
        with (workdir / _LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a disk without locks
        return False
    return False


def is_workdir(folder: pathlib.Path) -> bool:
    """True if a run has started in a folder. The folder of a training in stages is not one; those of its stages are."""
    return all((folder / name).is_file() for name in (_CONFIG_FILE, _LABELS_FILE, DATA_FILE))


def find_workdirs(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Finds the folder's workdirs, itself included, at any depth. Nothing below a workdir is searched."""
    if is_workdir(folder):
        yield folder
        return
    try:
        subfolders = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    for path in subfolders:
        yield from find_workdirs(path)


def read_config(workdir: pathlib.Path, *, for_training: bool = False) -> ConfigDict:
    """Reads the config of the run in a workdir.

    Args:
      workdir: the workdir.
      for_training: whether to continue the training, see `deeplab_jax.config.migrate_config`.

    Raises:
      UserError: there is no run in the folder, or the file is damaged.
    """
    return config_lib.read_saved(_run_file(workdir, _CONFIG_FILE), for_training=for_training)


def read_labels(workdir: pathlib.Path) -> LabelSet:
    """Reads the class names and the palette of the run in a workdir.

    Raises:
      UserError: there is no run in the folder, or the file is damaged.
    """
    values = read_json(_run_file(workdir, _LABELS_FILE))
    try:
        return LabelSet.from_json(values["class_names"], values["palette"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{workdir / _LABELS_FILE} is damaged: {error}") from None


def _join(names: list[str]) -> str:
    return ", ".join(names)


def _run_file(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Returns a file that every run has."""
    if not (workdir / name).exists():
        raise UserError(f"{workdir} does not hold a run: it has no {name}; `deeplab-jax train` writes one")
    return workdir / name
