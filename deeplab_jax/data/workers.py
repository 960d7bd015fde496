"""Data worker processes, which live exactly as long as the run that needs them.

Grain starts the workers and passes batches through shared memory. This module adds what a run needs when something goes
wrong. A signal to the whole process group stops the run in an orderly way, so workers ignore it. Workers end when the
run is killed. Shared memory is removed even if all processes of a run are killed at once: then the next run does it.
"""

import atexit
import contextlib
import functools
import multiprocessing
import os
import pathlib
import re
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker, shared_memory
from typing import IO, TYPE_CHECKING, Any

from deeplab_jax.errors import UserError

if TYPE_CHECKING:
    import grain

_USE_THREADS = "set --config.data.workers=0 to read in threads of the main process"
_PREFIX = "deeplab_jax-"  # names of shared memory begin with it
IGNORED_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def iterate(dataset: "grain.IterDataset", workers: int) -> Iterator[Any]:
    """Iterates over a data set that worker processes read. Close the iterator to end them.

    Args:
      dataset: the data set; each worker reads its share of it.
      workers: number of processes, at least 1.

    Raises:
      UserError: this machine has no shared memory or too little of it, or a worker process died.
    """
    import grain

    start_resource_tracker()
    name = _claim_shared_memory()
    # Workers take whole batches in turn, which keeps their order.
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    dataset = dataset.mp_prefetch(options, functools.partial(_set_up_worker, name))
    with contextlib.closing(iter(dataset)) as batches:
        try:
            yield _start(batches)
            yield from batches
        except StopIteration:
            return
        except RuntimeError as error:
            died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
            if died is None:  # Grain has no exception type for a dead worker
                raise
            raise UserError(_describe_death(int(died[1]))) from error


def _describe_death(code: int) -> str:
    if code == -getattr(signal, "SIGBUS", 0):  # a page of shared memory that does not exist
        return (
            "a data worker process ran out of shared memory; enlarge /dev/shm (docker run --shm-size=8g), or "
            f"{_USE_THREADS}"
        )
    return (
        "a data worker process died (killed, or out of memory); run the same command again to continue, with a smaller "
        "--config.data.workers if memory is the problem"
    )


def _start(batches: Iterator[Any]) -> Any:
    """Returns the first batch, which starts the workers, so that they are never exposed to the run's signals.

    A new process inherits the blocked signals of the thread that starts it, and so do the threads that Grain uses for
    this. The calling thread itself still gets signals while it waits.
    """
    results = []

    def run() -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        try:
            results.append((next(batches), None))
        except BaseException as error:  # raised again in the calling thread
            results.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    ((batch, error),) = results
    if error is not None:
        raise error
    return batch


def _set_up_worker(name: str, index: int, count: int) -> None:
    """Runs first in each worker."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Python has no public setting for these names, which tell a later run whose shared memory it is.
    shared_memory._make_filename = lambda: f"/{name}-{secrets.token_hex(4)}"
    threading.Thread(target=_end_with_parent, args=(name,), daemon=True).start()


def _end_with_parent(name: str) -> None:
    """Ends this worker as soon as the process that started it has ended, however that happens.

    Linux could send a signal (PR_SET_PDEATHSIG), but would do so when the thread that started the worker ends.
    """
    multiprocessing.parent_process().join()
    _remove(name)
    os._exit(1)


def start_resource_tracker() -> None:
    """Starts Python's process that removes shared memory when this one is killed, without its warnings about it.

    It must run before signals are blocked, since starting it unblocks them.
    """
    variable = "PYTHONWARNINGS"
    before = os.environ.get(variable)
    os.environ[variable] = ",".join(filter(None, (before, "ignore:resource_tracker")))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


# ---- The names of shared memory, on Linux ----

_FOLDER = pathlib.Path("/dev/shm")
_claimed: list[IO[str]] = []  # the open file whose lock shows that this process is alive


def _claim_shared_memory() -> str:
    """Returns the prefix of this process's shared memory, and removes that of runs that have died.

    Raises:
      UserError: there is no shared memory.
    """
    try:
        name = _claim_name()
        multiprocessing.get_context("spawn").Lock()
        block = shared_memory.SharedMemory(f"{name}-test", create=True, size=1)
    except OSError as error:
        raise UserError(
            f"data workers need shared memory, which this machine does not provide (/dev/shm: {error.strerror}); "
            f"{_USE_THREADS}"
        ) from error
    block.close()
    block.unlink()
    return name


def _claim_name() -> str:
    """Returns the prefix that this process has claimed.

    A process holds the lock of the file of this name as long as it lives. Unlike process ids, that also works between
    containers that share /dev/shm.
    """
    if _claimed:
        return pathlib.Path(_claimed[0].name).name
    if sys.platform != "linux":
        return _PREFIX + secrets.token_hex(4)
    import fcntl

    _remove_abandoned()
    path = _FOLDER / (_PREFIX + secrets.token_hex(4))
    file = path.open("x")
    fcntl.flock(file, fcntl.LOCK_EX)
    if not path.exists():  # another process has just taken it for an abandoned one
        file.close()
        return _claim_name()
    _claimed.append(file)
    atexit.register(_release)
    # The same prefix for Python's named semaphores, which it keeps in the same folder.
    multiprocessing.current_process()._config["semprefix"] = f"/{path.name}"
    return path.name


def _release() -> None:
    file = _claimed.pop()
    pathlib.Path(file.name).unlink(missing_ok=True)
    file.close()


def _remove_abandoned() -> None:
    import fcntl

    for path in _FOLDER.glob(f"{_PREFIX}????????"):
        with contextlib.suppress(OSError), path.open("r+") as file:  # locked, or another user's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path.name)


def _remove(name: str) -> None:
    """Removes all shared memory whose names begin with `name`."""
    for pattern in (f"{name}*", f"sem.{name}*"):
        for path in _FOLDER.glob(pattern):
            path.unlink(missing_ok=True)
