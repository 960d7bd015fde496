"""Writes checkpoints in TensorFlow's format, right or wrong, from dicts of arrays."""

import pathlib
import struct

import numpy as np

from deeplab_jax.pretrained.readers.tf_checkpoint import crc32c

_TYPES = {"float32": 1, "float64": 2, "int64": 9}


def varint(value: int) -> bytes:
    value %= 1 << 64
    content = b""
    while value > 127:
        content += bytes([value & 127 | 128])
        value >>= 7
    return content + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer message: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def checksum(content: bytes) -> bytes:
    crc = crc32c(np.frombuffer(content, np.uint8))
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % (1 << 32))


def with_trailer(block: bytes, compression: int = 0) -> bytes:
    """A block of a table with its compression and checksum."""
    content = block + bytes([compression])
    return content + checksum(content)


def block_of(entries: dict[bytes, bytes], *, sharing: int = 16) -> bytes:
    """Entries that leave out what they share with the key before, but for every `sharing`-th."""
    content, before, restarts = b"", b"", []
    for i, (key, value) in enumerate(sorted(entries.items())):
        shared = 0
        if i % sharing == 0:
            restarts.append(len(content))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return content + b"".join(struct.pack("<I", place) for place in [*restarts, len(restarts)])


def table_of(blocks: list[bytes], *, last_keys: list[bytes]) -> bytes:
    """A table of data blocks that have their trailers."""
    content, handles = b"", {}
    for block, key in zip(blocks, last_keys, strict=True):
        handles[key] = varint(len(content)) + varint(len(block) - 5)
        content += block
    footer = b""
    for block in (block_of({}), block_of(handles)):
        footer += varint(len(content)) + varint(len(block))
        content += with_trailer(block)
    return content + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write_checkpoint(prefix: pathlib.Path, variables: dict[str, np.ndarray], *, blocks: int = 1) -> None:
    """A checkpoint of one data file, its index in so many blocks."""
    entries, data = {b"": field(1, 1)}, b""
    for name, value in variables.items():
        content = value.tobytes()
        entries[name.encode()] = entry(value, offset=len(data), size=len(content), crc=checksum(content))
        data += content
    write_files(prefix, entries, data, blocks=blocks)


def write_files(prefix: pathlib.Path, entries: dict[bytes, bytes], data: bytes, *, blocks: int = 1) -> None:
    """The two files of a checkpoint from the entries of its index."""
    keys = sorted(entries)
    groups = [group for group in np.array_split(np.array(keys, object), blocks) if group.size]
    contents = [with_trailer(block_of({key: entries[key] for key in group})) for group in groups]
    index = table_of(contents, last_keys=[group[-1] for group in groups])
    prefix.with_name(prefix.name + ".index").write_bytes(index)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)


def entry(value: np.ndarray, *, offset: int, size: int, crc: bytes, kind: int | None = None) -> bytes:
    """A BundleEntryProto."""
    shape = b"".join(field(2, field(1, extent)) for extent in value.shape)
    content = field(1, _TYPES[value.dtype.name] if kind is None else kind) + field(2, shape)
    return content + field(4, offset) + field(5, size) + varint(6 << 3 | 5) + crc
