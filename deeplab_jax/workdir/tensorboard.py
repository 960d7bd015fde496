"""TensorBoard events of a training run."""

import errno
import logging
import os
import pathlib
import socket
import struct
import time
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)


class Events:
    """Writes TensorBoard events, each completely before a method returns.

    The writer of tensorboardX uses a thread. If that dies, on a full disk, the run waits for it forever. Here such an
    error is logged once, and the run continues without events.

    Args:
      folder: gets a file of events; it is created.
      purge_step: TensorBoard hides the events of earlier files from this step on; None hides nothing.
    """

    def __init__(self, folder: pathlib.Path, *, purge_step: int | None = None):
        # They import protobuf, which prediction does not need.
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2

        self._proto, self._summary, self._checksum = event_pb2, summary, record_writer.masked_crc32c
        self._folder, self._file = folder, None
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / name).open("wb", buffering=0)
        except OSError as error:
            self._give_up(error)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            status = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=purge_step, session_log=status)

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """Adds numbers by name."""
        for name, value in values.items():
            self._write(step=step, summary=self._summary.scalar(name, value))

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds an image: uint8 (height, width, 3)."""
        if self._file is not None:  # encoding takes time
            self._write(step=step, summary=self._summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, **fields: Any) -> None:
        """Writes one record: its length, the event, and checksums of both."""
        if self._file is None:
            return
        content = self._proto.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", self._checksum(part)) for part in (length, content)]
        record = length + checksums[0] + content + checksums[1]
        try:
            if self._file.write(record) < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.close()
        logger.warning(
            "cannot write TensorBoard events to %s: %s; continuing without them", self._folder, error.strerror
        )
