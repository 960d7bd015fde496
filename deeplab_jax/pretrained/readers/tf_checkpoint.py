"""Reader of TensorFlow checkpoints (`model.ckpt.index` and `model.ckpt.data-00000-of-00001`).

The index is a sorted string table in LevelDB's format (LevelDB, `doc/table_format.md`; TensorFlow,
`core/lib/io/format.cc`): blocks of prefix-compressed entries, each block with a checksum. The key of an entry is the
name of a variable, its value a BundleEntryProto (TensorFlow, `core/protobuf/tensor_bundle.proto`): type, shape, data
file and offset of the values. Every offset and every checksum is verified.
"""

import functools
import math
import pathlib
import struct
from collections.abc import Callable

import numpy as np

from deeplab_jax import budget
from deeplab_jax.data import archives
from deeplab_jax.errors import UserError

_FOOTER_SIZE, _MAGIC = 48, 0xDB4775248B80FB57
_TRAILER_SIZE = 5  # one byte of compression, four of checksum
_SNAPPY = 1

# enum DataType of TensorFlow's types.proto; numpy has no bfloat16 (14)
_DTYPES = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 14: "<u2", 17: "<u2", 19: "<f2",
    22: "<u4", 23: "<u8",
}  # fmt: skip
_BFLOAT16 = 14


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the variables of a checkpoint by name. bfloat16 becomes float32.

    Args:
      path: the prefix (`model.ckpt`), its `.index` file, a folder with one checkpoint, or a tar archive of one.
        Archives are read in memory; nothing is unpacked.

    Raises:
      UserError: there is no checkpoint, or it is damaged, compressed or partitioned.
    """
    prefix, load, left = _open(path)
    try:
        return _read_variables(prefix, load, left)
    except (ValueError, TypeError, IndexError, OverflowError, struct.error) as error:
        raise UserError(f"checkpoint {prefix} is damaged: {error}") from None


def _open(path: pathlib.Path) -> tuple[str, Callable[[str], np.ndarray], budget.Budget]:
    """Opens a checkpoint; returns its prefix, a function that reads a file by name, and the budget."""
    if path.is_dir():
        prefix = _only_prefix(path, [str(file) for file in sorted(path.glob("*.index"))])
    else:
        prefix = str(path).removesuffix(".index")
    if path.is_file() and not pathlib.Path(f"{prefix}.index").is_file():
        return _open_archive(path)
    left = budget.Budget(f"checkpoint {prefix}", 0)

    def load(name: str) -> np.ndarray:
        try:
            left.grow(budget.file_size(pathlib.Path(name)))
            return np.memmap(name, np.uint8, "r")
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror or error}") from None

    if not pathlib.Path(f"{prefix}.index").is_file():
        raise UserError(f"{path} is not a checkpoint: there is no file {prefix}.index")
    return prefix, load, left


def _open_archive(path: pathlib.Path) -> tuple[str, Callable[[str], np.ndarray], budget.Budget]:
    files, size = {}, path.stat().st_size
    left = budget.Budget(f"archive {path}", size)
    try:
        for member, content in archives.tar_members(path, budget.Budget(f"archive {path}", size, budget.ARCHIVE)):
            if member.name.endswith(".index") or ".data-" in member.name:
                files[member.name] = np.frombuffer(archives.read_member(member, content, left), np.uint8)
                left.grow(member.size)
    except archives.DAMAGED as error:
        raise UserError(f"archive {path} cannot be read: {error}") from None

    def load(name: str) -> np.ndarray:
        if name not in files:
            raise UserError(f"archive {path} has no file {name}")
        return files[name]

    return _only_prefix(path, [name for name in files if name.endswith(".index")]), load, left


def _only_prefix(path: pathlib.Path, names: list[str]) -> str:
    if len(names) != 1:
        found = f"contains {len(names)} checkpoints ({', '.join(names)}); choose one" if names else "has no checkpoint"
        raise UserError(f"{path} {found} (files named *.index)")
    return names[0].removesuffix(".index")


def _read_variables(prefix: str, load: Callable[[str], np.ndarray], left: budget.Budget) -> dict[str, np.ndarray]:
    entries = _read_table(load(f"{prefix}.index").tobytes(), left)
    # The first key is empty: a BundleHeaderProto.
    header = dict(_fields(entries.pop(b"", b"")))
    num_shards = header.get(1, 0)
    if not 1 <= num_shards < 100_000 or header.get(2, 0) != 0:
        raise ValueError(f"{num_shards} data files, byte order {header.get(2, 0)}")
    shards = functools.cache(lambda number: load(f"{prefix}.data-{number:05d}-of-{num_shards:05d}"))
    # Keys that start with a zero byte are slices of partitioned variables, whose own entry follows.
    names = {key.decode(): entry for key, entry in entries.items() if not key.startswith(b"\0")}
    return {name: _read_variable(repr(name)[1:-1], entry, shards, left) for name, entry in names.items()}


def _read_variable(name: str, entry: bytes, shards: Callable[[int], np.ndarray], left: budget.Budget) -> np.ndarray:
    fields = _fields(entry)
    if any(number == 7 for number, _ in fields):
        raise UserError(f"variable {name} is partitioned; save the checkpoint without a partitioner")
    values = dict(fields)
    if values.get(1) not in _DTYPES:
        raise UserError(f"variable {name} has the non-numeric type {values.get(1)!r:.20} of TensorFlow's types.proto")
    dtype = np.dtype(_DTYPES[values[1]])
    shape = tuple(dict(_fields(dim)).get(1, 0) for number, dim in _fields(values.get(2, b"")) if number == 2)
    if len(shape) > budget.DIMENSIONS or not all(type(extent) is int for extent in shape):
        raise ValueError(f"variable {name} has an invalid shape of {len(shape)} dimensions")
    offset, size = values.get(4, 0), values.get(5, 0)
    stored = shards(values.get(3, 0))[offset : offset + size]
    if stored.size != size or size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"variable {name} of shape {shape} has {stored.size} of {size} bytes")
    left.spend(size)  # variables can share their bytes
    if _masked(crc32c(stored)) != values.get(6, 0):
        raise ValueError(f"variable {name} has a wrong checksum")
    if values[1] == _BFLOAT16:
        stored, dtype = (stored.view(dtype).astype("<u4") << 16).view(np.uint8), np.dtype("<f4")
    return np.array(stored).view(dtype).reshape(shape)


def _read_table(content: bytes, left: budget.Budget) -> dict[bytes, bytes]:
    if len(content) < _FOOTER_SIZE or struct.unpack_from("<Q", content, len(content) - 8) != (_MAGIC,):
        raise ValueError("the index is not a table")
    footer = content[-_FOOTER_SIZE:]
    _, _, position = _handle(footer, 0)  # handle of the meta index, which is empty
    offset, size, _ = _handle(footer, position)
    entries, total = {}, 0
    for value in _read_block(content, offset, size, left).values():
        offset, size, _ = _handle(value, 0)
        total += size
        if total > len(content):
            raise ValueError("the blocks of the index overlap")
        entries |= _read_block(content, offset, size, left)
    return entries


def _read_block(content: bytes, offset: int, size: int, left: budget.Budget) -> dict[bytes, bytes]:
    block = content[offset : offset + size]
    trailer = content[offset + size : offset + size + _TRAILER_SIZE]
    if len(trailer) != _TRAILER_SIZE or size < 4:
        raise ValueError(f"a block of {size} bytes at {offset} reaches beyond the end")
    if _masked(crc32c(np.frombuffer(block + trailer[:1], np.uint8))) != struct.unpack("<I", trailer[1:])[0]:
        raise ValueError(f"the block at {offset} has a wrong checksum")
    if trailer[0] == _SNAPPY:
        raise UserError("the index is compressed with Snappy, which TensorFlow's Saver never does; not supported")
    # The entries are followed by the offsets of entries with full keys, and their number.
    (restarts,) = struct.unpack("<I", block[-4:])
    end = size - 4 - 4 * restarts
    if trailer[0] != 0 or end < 0:
        raise ValueError(f"the block at {offset} has compression {trailer[0]} and {restarts} restarts")
    entries, key, position = {}, b"", 0
    while position < end:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        if shared > len(key) or position + unshared + length > end:
            raise ValueError(f"an entry of the block at {offset} reaches beyond it")
        left.spend(shared)  # keys that repeat the one before can be far longer than the block
        key = key[:shared] + block[position : position + unshared]
        entries[key] = block[position + unshared : position + unshared + length]
        position += unshared + length
    return entries


def _handle(content: bytes, position: int) -> tuple[int, int, int]:
    offset, position = _varint(content, position)
    size, position = _varint(content, position)
    return offset, size, position


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """Returns the fields of a protocol buffer message in order, as (number, stored value)."""
    fields, position = [], 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 0:
            value, position = _varint(message, position)
        else:
            if tag & 7 == 2:
                size, position = _varint(message, position)
            elif tag & 7 in (1, 5):
                size = 8 if tag & 7 == 1 else 4
            else:
                raise ValueError(f"a message has wire type {tag & 7}")
            value, position = message[position : position + size], position + size
            if position > len(message):
                raise ValueError("a message is truncated")
            if tag & 7 != 2:
                value = int.from_bytes(value, "little")
        fields.append((tag >> 3, value))
    return fields


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number has more than ten bytes")


def crc32c(content: np.ndarray) -> int:
    """Computes the Castagnoli CRC (RFC 3720, appendix B.4) of bytes.

    The register is linear in the bits. Pieces of equal length are processed side by side, and neighbors are joined by
    shifting the first one by the length of the second.
    """
    lanes = 1 << min(12, max(0, (content.size // 64).bit_length() - 1))
    length = -(-content.size // lanes)
    # Leading zeros do not change a zero register; the initial ones are added at the end.
    padded = np.zeros(lanes * length, np.uint8)
    padded[padded.size - content.size :] = content
    table, states = _crc_table(), np.zeros(lanes, np.uint32)
    for column in np.ascontiguousarray(padded.reshape(lanes, length).T):
        states = table[(states ^ column) & 255] ^ (states >> 8)
    shift = _shift_by(length)
    while states.size > 1:
        states = _apply(shift, states[0::2]) ^ states[1::2]
        shift = _apply(shift, shift)
    preset = _apply(_shift_by(content.size), np.array([0xFFFFFFFF], np.uint32))
    return int(states[0] ^ preset[0]) ^ 0xFFFFFFFF


@functools.cache
def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


@functools.cache
def _shift_by(length: int) -> np.ndarray:
    """Returns what `length` zero bytes turn each bit of the register into."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    result, step = bits, _crc_table()[bits & 255] ^ (bits >> 8)
    while length:
        if length & 1:
            result = _apply(step, result)
        step, length = _apply(step, step), length >> 1
    return result


def _apply(matrix: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Applies a linear map to registers; `matrix` contains the image of each bit."""
    result = np.zeros_like(states)
    for bit, image in enumerate(matrix):
        result ^= np.where((states >> np.uint32(bit)) & np.uint32(1), image, np.uint32(0))
    return result


def _masked(checksum: int) -> int:
    """Returns the stored form of a checksum; masking protects data that has checksums inside (LevelDB, `crc32c.h`)."""
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF
