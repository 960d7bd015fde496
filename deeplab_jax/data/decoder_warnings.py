"""Warnings of image decoders, which are not shown. Unlike `warnings.catch_warnings`, this works in several threads."""

import contextlib
import threading
import warnings
from collections.abc import Iterator

from PIL import Image

_lock = threading.Lock()
_blocks = 0  # that are running in all threads
_restore = contextlib.ExitStack()


@contextlib.contextmanager
def ignore() -> Iterator[None]:
    """Ignores, for the duration of a block, warnings about odd EXIF data and about large images.

    Python's filters belong to the process: if each thread saved and restored them, the first to finish would show the
    warnings of the others. Here the first block to begin changes them and the last one to end restores them.
    """
    global _blocks
    with _lock:
        _blocks += 1
        if _blocks == 1:
            _restore.enter_context(warnings.catch_warnings())
            for category in (UserWarning, Image.DecompressionBombWarning):
                warnings.simplefilter("ignore", category)
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if _blocks == 0:
                _restore.close()
