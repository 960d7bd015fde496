"""Run-length encoded masks: COCO's, compressed or not, CVAT's, and the brush strokes of Label Studio."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from deeplab_jax.data.formats.rasterize import DegenerateShape

_HEADER_BITS = 32 + 5 + 4 * 4  # of Label Studio: values, bits per value, and four sizes of run lengths


def decode_coco(segmentation: dict, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Decodes the run lengths of a COCO annotation: `{"size": [height, width], "counts": ...}`, column by column.

    Args:
      segmentation: its `counts` are a list of integers, or their compressed text (cocoapi, `maskApi.c`,
        `rleFrString`).
      size: (height, width) of the image.

    Raises:
      DegenerateShape: it is damaged, or of another size.
    """
    if segmentation.get("size") != list(size):
        raise DegenerateShape(f"its size {segmentation.get('size')!r:.40} is not that of the image, {list(size)}")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    return decode_runs(counts, size[::-1]).T


def decode_counts(text: str) -> list[int]:
    """Decodes compressed run lengths: six bits per character, the last bit of five says whether a number goes on.

    From the third number on, each is the difference from the number two places before it.

    Raises:
      DegenerateShape: a character is not part of the code, or the text ends within a number.
    """
    counts, value, shift = [], 0, 0
    for character in text.encode("latin-1", "replace"):
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DegenerateShape("its run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise DegenerateShape("its run lengths are damaged")
    return counts


def decode_runs(counts: object, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Decodes run lengths, row by row. The first run is outside of the mask.

    Args:
      counts: a list of integers; their sum is the number of pixels.
      size: (height, width) of the mask.

    Raises:
      DegenerateShape: they are not integers of at least 0, or have another sum.
    """
    total = size[0] * size[1]
    if not isinstance(counts, Sequence) or not all(type(count) is int and 0 <= count <= total for count in counts):
        raise DegenerateShape("its run lengths are damaged")
    if sum(counts) != total:
        raise DegenerateShape(f"its run lengths describe {sum(counts)} pixels, not {size[0]}x{size[1]}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size)


def encode_runs(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """The run lengths of a mask, row by row, for `decode_runs`."""
    flat = np.concatenate([[False], mask.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


def decode_brush(values: object, size: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """Decodes a brush stroke of Label Studio: the opacity, 0 to 255, of an RGBA image that is packed bit by bit.

    The code is that of `@thi.ng/rle-pack`. After a header, each block has a bit that tells a run of one value from a
    list of values, two bits that select one of four sizes, and the number of values in as many bits.

    Args:
      values: bytes as integers.
      size: (height, width) of the image.

    Raises:
      DegenerateShape: it is damaged, or of another size.
    """
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 256 for value in values):
        raise DegenerateShape("its brush stroke is not a list of bytes")
    bits = np.unpackbits(np.array(values, np.uint8))
    if len(bits) < _HEADER_BITS or _number(bits, 0, 32) != 4 * size[0] * size[1]:
        raise DegenerateShape(f"its brush stroke does not have the size of the image, {size[0]}x{size[1]}")
    word = _number(bits, 32, 5) + 1
    lengths = [_number(bits, 37 + 4 * i, 4) + 1 for i in range(4)]
    if word != 8:
        raise DegenerateShape(f"its brush stroke has {word} bits per value, not 8")
    packed = np.packbits(bits).tobytes() + bytes(8)  # zeros after the end, where a damaged block looks for its numbers
    rgba = np.zeros(4 * size[0] * size[1], np.uint8)
    position, filled = _HEADER_BITS, 0
    while filled < len(rgba):
        # The next 32 bits that begin at a byte: there are at most 7 + 3 + 16 bits to read.
        block = int.from_bytes(packed[position // 8 : position // 8 + 4], "big") << position % 8
        is_run, length = block >> 31 & 1, lengths[block >> 29 & 3]
        count = (block >> (29 - length) & ((1 << length) - 1)) + 1
        position += 3 + length
        following = position + (8 if is_run else 8 * count)
        if filled + count > len(rgba) or following > len(bits):
            raise DegenerateShape("its brush stroke is damaged")
        rgba[filled : filled + count] = np.packbits(bits[position:following])
        position, filled = following, filled + count
    return rgba.reshape(*size, 4)[..., 3]


def _number(bits: Integer[np.ndarray, " bits"], start: int, length: int) -> int:
    return int("".join(map(str, bits[start : start + length])), 2)
