"""TensorBoard events of a training run."""

import errno
import json
import logging
import os
import pathlib
import socket
import struct
import textwrap
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.storage.segments import open_log
from deeplab_jax.workdir import hparams

logger = logging.getLogger(__name__)


class Events:
    """Writes TensorBoard events, each completely before a method returns; see `deeplab_jax.workdir.writers`.

    The writer of tensorboardX uses a thread. If that dies, on a full disk, the run waits for it forever. Here such an
    error is logged once, and the run continues without events.

    Args:
      folder: gets a file of events; it is created.
      purge_step: TensorBoard hides the events of earlier files from this step on; None removes the earlier files.
    """

    replays = False

    def __init__(self, folder: pathlib.Path, *, purge_step: int | None = None):
        # They import protobuf, which prediction does not need.
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2, summary_pb2

        self._proto, self._messages = event_pb2, summary_pb2
        self._summary, self._checksum = summary, record_writer.masked_crc32c
        self._folder, self._file, self._first_step = folder, None, purge_step or 0
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("events.out.tfevents.*") if purge_step is None else ():
                path.unlink()
            self._file = open_log(folder / name)
        except OSError as error:
            self._give_up(error)
        self._write(file_version="brain.Event:2")
        # The first file starts a session, too: TensorBoard hides nothing at the first start that it sees.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=self._first_step, session_log=start)

    def add_config(self, config: ConfigDict) -> None:
        """Shows the config as text, and its fields in the table of runs."""
        text = json.dumps(config_lib.to_saved(config), indent=1)
        self._write(step=self._first_step, summary=self._summary.text("config", textwrap.indent(text, "    ")))
        self._write(step=self._first_step, summary=hparams.session_start(config_lib.result_fields(config)))

    def add_scalars(self, group: str, values: dict[str, float], step: int) -> None:
        """Adds the numbers of a group by name."""
        for name, value in values.items():
            # Not by `summary.scalar`, which replaces the spaces and accents of class names and then logs that.
            scalar = self._messages.Summary.Value(tag=f"{group}/{name}", simple_value=value)
            self._write(step=step, summary=self._messages.Summary(value=[scalar]))
        self._flush()

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds an image: uint8 (height, width, 3)."""
        if self._file is not None:  # encoding takes time
            self._write(step=step, summary=self._summary.image(name, image, dataformats="HWC"))
            self._flush()

    def close(self, status: str = "stopped") -> None:
        """Closes the file. A finished run says so."""
        if status == "finished":
            self._write(summary=hparams.session_end())
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

    def _flush(self) -> None:
        """Uploads the records if the workdir is in a bucket. On a disk, each is written at once."""
        if self._file is not None:
            self._file.flush()

    def _give_up(self, error: OSError) -> None:
        self.close()
        logger.warning(
            "cannot write TensorBoard events to %s: %s; continuing without them", self._folder, error.strerror
        )
