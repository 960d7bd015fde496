"""Records in the wire format of `tf.train.Example`, so that TensorFlow Datasets can read them, without TensorFlow.

    message Example { Features features = 1; }
    message Features { map<string, Feature> feature = 1; }
    message Feature { BytesList bytes_list = 1; ... }
    message BytesList { repeated bytes value = 1; }

Every message here has its content in field 1 as length-delimited bytes; a map entry has its key in field 1 and its
value in field 2 (protobuf.dev/programming-guides/encoding).
"""

from collections.abc import Iterator, Mapping

_LENGTH_DELIMITED = 2  # wire type


def serialize(features: Mapping[str, bytes]) -> bytes:
    """The record of an example whose features are single byte strings."""
    entries = b""
    for name, value in features.items():
        feature = _field(1, _field(1, value))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def parse(record: bytes) -> dict[str, bytes]:
    """The features of a record that are single byte strings.

    Raises:
      ValueError: the record is damaged.
    """
    features = {}
    for example in _read_fields(memoryview(record)):
        for entry in _read_fields(example):
            key, feature = _read_fields(entry)
            (bytes_list,) = _read_fields(feature)
            (value,) = _read_fields(bytes_list)
            features[bytes(key).decode()] = bytes(value)
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
