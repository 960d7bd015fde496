"""Calls of a function in other threads, ahead of the use of their results, with bounded memory."""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Threads that read or write images. Decoding, encoding and resizing release the interpreter's lock.
THREADS = min(16, (os.cpu_count() or 1) + 1)

_MOST_PIXELS = 2**26  # in all items that are worked on or wait, such as five photos of 12 megapixels
_RECENT = 64  # results that tell how large the next ones will be


def map_ahead(
    function: Callable[[_T], _R], items: Iterable[_T], *, num_pixels: Callable[[_R], int], threads: int = THREADS
) -> Iterator[_R]:
    """Yields `function(item)` of each item, in order, computed by threads while the caller uses earlier results.

    The iterable is advanced in the caller's thread. The largest of recent results tells how many more fit into memory;
    an image of 90 million pixels is read while the one before it is used, and no third.

    Args:
      function: called in other threads. If it raises, so does the iterator when the result is due.
      items: the arguments.
      num_pixels: the number of pixels of a result.
      threads: number of threads.
    """
    waiting: deque[Future[_R]] = deque()
    recent: deque[int] = deque(maxlen=_RECENT)
    items = iter(items)

    def submit() -> None:
        most = min(2 * threads, _MOST_PIXELS // max(1, *recent)) if recent else 1
        for item in itertools.islice(items, max(1, most) - len(waiting)):
            waiting.append(executor.submit(function, item))

    with ThreadPoolExecutor(threads) as executor, contextlib.ExitStack() as stack:
        stack.callback(lambda: [future.cancel() for future in waiting])
        submit()
        while waiting:
            result = waiting.popleft().result()
            recent.append(num_pixels(result))
            submit()
            yield result
