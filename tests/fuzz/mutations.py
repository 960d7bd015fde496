"""Damaged and hostile variants of valid files."""

import copy
import gzip
import json
import pickletools
import random
import struct
import zlib
from typing import Any

_ODD_VALUES = (
    None, True, False, 0, -1, 1, 255, 256, 10**9, 2**31, 2**63, -(2**63), 2**200, 0.5, 1e308, -0.0, "", "a", "\0",
    "\ud800", "x" * 300, [], {}, [[]], [0] * 100, {"a": {}}, [1, 2, 3, 4], "float64", "../../etc/passwd",
)  # fmt: skip


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flips bits, cuts, inserts, repeats, and sets length fields to huge values."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        position = rng.randrange(len(changed) + 1)
        kind = rng.choice(("bit", "bit", "byte", "cut", "insert", "delete", "repeat", "length", "length"))
        if kind == "bit" and position < len(changed):
            changed[position] ^= 1 << rng.randrange(8)
        elif kind == "byte" and position < len(changed):
            changed[position] = rng.choice((rng.randrange(256), 0, 255, 127, 128))
        elif kind == "cut" and rng.random() < 0.5:
            del changed[position:]
        elif kind == "insert":
            changed[position:position] = rng.randbytes(rng.randint(1, 16))
        elif kind == "delete":
            del changed[position : position + rng.randint(1, 16)]
        elif kind == "repeat":
            changed[position:position] = changed[position : position + rng.randint(1, 64)] * rng.choice((1, 2, 1000))
        elif kind == "length":
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, 2**24, 2**31, 0))
            order = rng.choice(("little", "big"))
            changed[position : position + width] = (number % 2 ** (8 * width)).to_bytes(width, order)
    return bytes(changed)


def mutate_png(rng: random.Random, content: bytes) -> bytes:
    """Damages one chunk and gives it the right length and checksum."""
    chunks, position = [], 8
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        chunks.append((content[position + 4 : position + 8], content[position + 8 : position + 8 + length]))
        position += 12 + length
    place = rng.randrange(len(chunks))
    kind, payload = chunks[place]
    if kind == b"IDAT" and rng.random() < 0.5:
        payload = zlib.compress(mutate_bytes(rng, zlib.decompress(payload)))
    else:
        payload = mutate_bytes(rng, payload)
    chunks[place] = kind, payload
    if rng.random() < 0.1:
        chunks.insert(place, rng.choice(chunks))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return content[:8] + b"".join(parts)


def mutate_json(rng: random.Random, content: bytes) -> bytes:
    """Replaces, removes, renames and repeats values at any place of a JSON text; sometimes damages the text."""
    if rng.random() < 0.15:
        return mutate_bytes(rng, content)
    if rng.random() < 0.02:
        depth = rng.choice((50, 500, 100_000))
        return b"[" * depth + b"]" * depth
    root = [json.loads(content)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        parent, key = _random_place(rng, root)
        kind = rng.choice(("replace", "replace", "replace", "remove", "rename", "nest", "repeat"))
        if kind == "replace":
            parent[key] = copy.deepcopy(rng.choice(_ODD_VALUES))
        elif kind == "nest":
            parent[key] = rng.choice(([parent[key]], {"a": parent[key]}))
        elif parent is root:
            continue
        elif kind == "remove":
            del parent[key]
        elif kind == "rename" and isinstance(parent, dict):
            parent[rng.choice(("", "a", "model", "version"))] = parent.pop(key)
        elif kind == "repeat" and isinstance(parent, list):
            parent[key:key] = [parent[key]] * rng.choice((1, 2, 300))
    return json.dumps(root[0]).encode("utf-8", "surrogatepass")


def _random_place(rng: random.Random, root: list) -> tuple[Any, Any]:
    parent, key = root, 0
    while True:
        child = parent[key]
        if not isinstance(child, (dict, list)) or not child or rng.random() < 0.2:
            return parent, key
        parent, key = child, rng.choice(list(child) if isinstance(child, dict) else range(len(child)))


_NAMES = (
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
    b"ctorch\nSize\n", b"cposix\nsystem\n", b"cargparse\nNamespace\n", b"ctorch._utils\n_rebuild_parameter\n",
)  # fmt: skip
_PIECES = (
    b"N", b"K\x01", b"}", b"]", b")", b"(", b"(", b"\x85", b"\x86", b"\x87", b"t", b"l", b"d", b"a", b"e", b"s", b"u",
    b"R", b"b", b"\x81", b"o", b"0", b"1", b"2", b"Q", b"q\x01", b"h\x01", b"q\x02", b"h\x02", b"\x94", b"U\x01a",
    b"X\x01\0\0\0w", b"U\x07storage", b"\x8a\x09" + b"\xff" * 9, b"\x8b\x00\x01\x00\x00" + b"\x7f" * 256,
    b"J\xff\xff\xff\xff", b"\x8f", b"\x90", b"\x91", b"G" + b"\x7f" * 8, b"I1\n", b"L9\n", b"B\x02\0\0\0ab",
    b"C\x01a",
)  # fmt: skip


def random_pickle(rng: random.Random, valid: bytes) -> bytes:
    """A valid pickle with other instructions, or instructions at random."""
    if rng.random() < 0.4:
        pieces = [rng.choice(_PIECES if rng.random() < 0.85 else _NAMES) for _ in range(rng.choice((5, 20, 200)))]
        return b"\x80\x02" + b"".join(pieces) * rng.choice((1, 1, 1, 100)) + b"."
    cuts = [position for _, _, position in pickletools.genops(valid)]
    pieces = [valid[a:b] for a, b in zip(cuts, [*cuts[1:], len(valid)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(1, len(pieces))
        kind = rng.choice(("insert", "remove", "swap", "repeat", "damage"))
        if kind == "insert":
            pieces.insert(place, rng.choice(_PIECES + _NAMES))
        elif kind == "remove" and len(pieces) > 2:
            del pieces[place]
        elif kind == "swap":
            other = rng.randrange(1, len(pieces))
            pieces[place], pieces[other] = pieces[other], pieces[place]
        elif kind == "repeat":
            pieces[place:place] = pieces[place : place + rng.randint(1, 8)] * rng.choice((1, 5, 200))
        else:
            pieces[place] = mutate_bytes(rng, pieces[place])
    return b"".join(pieces)


def mutate_gzip(rng: random.Random, content: bytes) -> bytes:
    """Damages what is compressed, so that the checksum is right."""
    return gzip.compress(mutate_bytes(rng, gzip.decompress(content)), 1)
