"""Records in the wire format of `tf.train.Example`, so that TensorFlow Datasets can read them, without TensorFlow.

    message Example { Features features = 1; }
    message Features { map<string, Feature> feature = 1; }
    message Feature { BytesList bytes_list = 1; Int64List int64_list = 3; ... }
    message BytesList { repeated bytes value = 1; }
    message Int64List { repeated int64 value = 1 [packed = true]; }

Every message here has its content in field 1 as length-delimited bytes, except for lists of integers, which are in
field 3 of a feature; a map entry has its key in field 1 and its value in field 2
(protobuf.dev/programming-guides/encoding).
"""

from collections.abc import Iterator, Mapping, Sequence

_LENGTH_DELIMITED = 2  # wire type
_BYTES_LIST, _INT64_LIST = 1, 3  # fields of a feature


def serialize(features: Mapping[str, bytes | Sequence[int]]) -> bytes:
    """The record of an example whose features are single byte strings or lists of integers of at least 0."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = _field(_BYTES_LIST, _field(1, value))
        else:
            feature = _field(_INT64_LIST, _field(1, b"".join(map(_varint, value))))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def parse(record: bytes) -> dict[str, bytes | tuple[int, ...]]:
    """The features of a record that are single byte strings or packed lists of integers.

    Raises:
      ValueError: the record is damaged.
    """
    features = {}
    for example in _read_fields(memoryview(record)):
        for entry in _read_fields(example):
            key, feature = _read_fields(entry)
            is_list = len(feature) > 0 and feature[0] >> 3 == _INT64_LIST
            (values,) = _read_fields(feature)
            (value,) = _read_fields(values)
            features[bytes(key).decode()] = _read_integers(value) if is_list else bytes(value)
    return features


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | _LENGTH_DELIMITED]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _read_fields(message: memoryview) -> Iterator[memoryview]:
    position = 0
    while position < len(message):
        if message[position] & 7 != _LENGTH_DELIMITED:
            raise ValueError("a field is not length-delimited")
        length, position = _read_varint(message, position + 1)
        if position + length > len(message):
            raise ValueError("a field ends after its record")
        yield message[position : position + length]
        position += length


def _read_integers(packed: memoryview) -> tuple[int, ...]:
    position, values = 0, []
    while position < len(packed):
        value, position = _read_varint(packed, position)
        values.append(value)
    return tuple(values)


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(message):
            raise ValueError("a length is cut off")
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
