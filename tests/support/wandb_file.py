"""Reads the records of a run that Weights & Biases kept offline: a `.wandb` file, in LevelDB's log format."""

import json
import pathlib
import struct
import time
import zlib

_FILE_HEADER, _RECORD_HEADER, _BLOCK = 7, 7, 32768
_FULL, _FIRST, _LAST = 1, 2, 4


def read_runs(folder: pathlib.Path, starts: int) -> list:
    """The records of the files below a folder, one list per start, the oldest first.

    A process of its own writes the files, up to a moment after the end of the run, which the last record says.
    """
    deadline = time.monotonic() + 60
    while True:
        files = [_read(path) for path in sorted(folder.glob("offline-run-*/*.wandb"))]
        if len(files) == starts and all(file and file[-1].WhichOneof("record_type") == "exit" for file in files):
            return files
        assert time.monotonic() < deadline, f"{len(files)} files, not all complete"
        time.sleep(0.05)


def history(records: list) -> list[dict]:
    """The values of each row that was logged."""
    rows = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    return [{(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in row.item} for row in rows]


def _read(path: pathlib.Path) -> list:
    from wandb.proto.wandb_internal_pb2 import Record

    content, records, parts = path.read_bytes(), [], []
    position = _FILE_HEADER
    while position + _RECORD_HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _RECORD_HEADER:
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        data = content[position + _RECORD_HEADER :][:length]
        if len(data) < length:
            break
        assert zlib.crc32(data, zlib.crc32(bytes([kind]))) == checksum
        position += _RECORD_HEADER + length
        parts = [data] if kind in (_FULL, _FIRST) else [*parts, data]
        if kind in (_FULL, _LAST):
            records.append(Record.FromString(b"".join(parts)))
    return records
