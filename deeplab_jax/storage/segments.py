"""A log of records in a bucket, where nothing can be appended: it is a sequence of objects."""

import pathlib

from deeplab_jax.storage import client
from deeplab_jax.storage.bucket_path import BucketPath

SEGMENT_BYTES = 256 << 10  # an object of this size is not written again, and the next one begins


class Segments:
    """Writes records to the objects `<name>.0000`, `<name>.0001` and so on, which are the log when read in this order.

    Args:
      path: the folder and the name.
    """

    def __init__(self, path: BucketPath):
        self._path, self._index = path, 0
        self._content, self._is_written = bytearray(), True

    def write(self, record: bytes) -> int:
        """Adds a record, which `flush` uploads."""
        self._content += record
        self._is_written = False
        return len(record)

    def flush(self) -> None:
        """Uploads the records that are not in the bucket yet, together with those that still fit into their object."""
        if self._is_written:
            return
        client.write(self._path.with_name(f"{self._path.name}.{self._index:04d}"), bytes(self._content))
        self._is_written = True
        if len(self._content) >= SEGMENT_BYTES:
            self._content, self._index = bytearray(), self._index + 1

    def close(self) -> None:
        """Uploads what is left."""
        self.flush()


def open_log(path: pathlib.Path):
    """Opens a file of records for writing: a `Segments` in a bucket, an unbuffered file on a disk."""
    return Segments(path) if isinstance(path, BucketPath) else path.open("wb", buffering=0)
