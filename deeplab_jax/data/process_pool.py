"""Work on the files of a data set in several processes, with results in the order of the items.

The processes are started when `map_in_order` first needs them and end with the block of `use`. They ignore signals,
which the terminal sends to the whole process group, and end with the process that started them, however that happens.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from deeplab_jax.data import workers
from deeplab_jax.errors import UserError

_T = TypeVar("_T")
_R = TypeVar("_R")

_CHUNK = 4  # items that are sent to a process at a time
_AHEAD = 2  # chunks per process that are sent before the first result is used; bounds the memory
_SMALL = 200  # items that one process reads in less time than others take to start


class _Pool:
    """The processes of a block."""

    def __init__(self, count: int):
        self.count = count
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future:
        """Starts the processes if necessary. New ones inherit that signals are blocked."""
        if self._executor is None:
            workers.start_resource_tracker()
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self.count, multiprocessing.get_context("spawn"), _set_up_process
            )
        with _blocked_signals():
            return self._executor.submit(function, *arguments)

    def close(self) -> None:
        """Ends the processes after what they do now."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


_pool: _Pool | None = None


@contextlib.contextmanager
def use(count: int) -> Iterator[None]:
    """Lets `map_in_order` use other processes for the duration of the block.

    Args:
      count: number of processes; 1 for none.
    """
    global _pool
    outer, _pool = _pool, _Pool(count) if count > 1 else None
    try:
        yield
    finally:
        inner, _pool = _pool, outer
        if inner is not None:
            inner.close()


def map_in_order(function: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
    """Yields `function(item)` of each item, in order, computed by the processes of `use`.

    Without `use`, for few items, and for a function or items that other processes cannot get, it is computed here.

    Args:
      function: a function of a module.
      items: its arguments.

    Raises:
      UserError: `function` raised it, after the results before it were yielded; or a process died.
    """
    pool = _pool
    if pool is None or len(items) < _SMALL or not _is_portable(function, items[0]):
        yield from map(function, items)
        return
    chunks = (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
    running: deque[concurrent.futures.Future] = deque()
    try:
        for chunk in chunks:
            running.append(pool.submit(_run, function, chunk))
            if len(running) > _AHEAD * pool.count:
                yield from _results(running.popleft())
        while running:
            yield from _results(running.popleft())
    except BrokenProcessPool:
        raise UserError(
            "a process that reads files died (killed, or out of memory); run the same command again to continue, with "
            "a smaller --workers if memory is the problem"
        ) from None
    finally:
        for future in running:
            future.cancel()


def _results(future: concurrent.futures.Future) -> Iterator[Any]:
    results, error = future.result()
    yield from results
    if error is not None:
        raise error


def _run(function: Callable[[_T], _R], chunk: Sequence[_T]) -> tuple[list[_R], UserError | None]:
    """The results of a chunk up to the first error."""
    results = []
    for item in chunk:
        try:
            results.append(function(item))
        except UserError as error:
            return results, error
    return results, None


def _is_portable(*values: Any) -> bool:
    """Whether other processes can get values: no lambdas, and no functions of a notebook."""
    try:
        content = multiprocessing.reduction.ForkingPickler.dumps(values)
    except Exception:  # classes raise all kinds of exceptions when they are pickled
        return False
    return b"__main__" not in bytes(content) or getattr(sys.modules["__main__"], "__file__", None) is not None


def _set_up_process() -> None:
    for number in workers.IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, workers.IGNORED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
