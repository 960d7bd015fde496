"""Mask files as they are stored, and looking up their colors."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image, ImageOps

from deeplab_jax.data import images
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_COLOR, IGNORE_LABEL, LabelSet

Kind = Literal["gray", "palette", "RGB"]

NO_COLOR = -1  # the color code of values that do not have a color

_GRAY_CODE = 0x010101  # times a gray value: the code of its color

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
_WHITE_IS_ZERO = 0


@dataclasses.dataclass(frozen=True)
class StoredMask:
    """The pixels of a mask file, upright as its EXIF orientation says.

    Attributes:
      path: the file.
      kind: gray, palette or RGB. Gray values of fewer than 8 bits are indices of a palette: value 1 of 1 bit is white.
      values: gray values, palette indices, or color codes (`0xrrggbb`).
      palette: color code of each palette index, `NO_COLOR` after the end of a short palette; None for other kinds.
      hidden: pixels that are fully transparent; None if there are none.
      hidden_by_value: transparency belongs to a gray value or a palette index, so an id is not lost where it is hidden.
    """

    path: pathlib.Path
    kind: Kind
    values: Integer[np.ndarray, "height width"]
    palette: Integer[np.ndarray, " 256"] | None = None
    hidden: Bool[np.ndarray, "height width"] | None = None
    hidden_by_value: bool = False

    def codes(self) -> Integer[np.ndarray, "height width"]:
        """The color code of each pixel."""
        if self.kind == "gray":
            return np.where(self.values > 255, NO_COLOR, self.values.astype(np.int64) * _GRAY_CODE)
        return self.values if self.palette is None else self.palette[self.values]


def color_code(color: tuple[int, int, int] | UInt8[np.ndarray, " 3"]) -> int:
    """A color as one number, `0xrrggbb`."""
    red, green, blue = (int(value) for value in color)
    return red << 16 | green << 8 | blue


def code_color(code: int) -> tuple[int, int, int]:
    """The color of a code."""
    return code >> 16, code >> 8 & 255, code & 255


def _color_ids(label_set: LabelSet) -> dict[int, int]:
    """The class id of each color code. A class whose color is `IGNORE_COLOR` keeps it."""
    classes = {color_code(color): index for index, color in enumerate(label_set.palette)}
    return {color_code(IGNORE_COLOR): IGNORE_LABEL} | classes


class UnknownLabels(UserError):
    """A mask contains ids or colors that are not assigned to any class.

    Attributes:
      counts: number of pixels of each of them; colors are codes.
      are_colors: whether they are color codes.
    """

    def __init__(self, message: str, unknown: np.ndarray, *, are_colors: bool = False):
        super().__init__(message)
        values, counts = np.unique(unknown, return_counts=True)
        self.counts = dict(zip(values.tolist(), counts.tolist(), strict=True))
        self.are_colors = are_colors

    def __reduce__(self):
        """Pickles the counts, which become pixels again: other processes raise this error too."""
        unknown = np.repeat(list(self.counts), list(self.counts.values()))
        return functools.partial(UnknownLabels, are_colors=self.are_colors), (str(self), unknown)

    def described(self) -> dict[str, int]:
        """Number of pixels of each id, or of each color as `#rrggbb`."""
        return {f"#{value:06x}" if self.are_colors else str(value): count for value, count in self.counts.items()}


def load_mask(path: pathlib.Path) -> StoredMask:
    """Reads the values that a mask file stores, without the stretching and rounding of image viewers.

    Raises:
      UserError: the file is missing or damaged, its compression changes values, or it is of an unsuitable kind.
    """
    image = images.open_image(path)
    compression = _lossy_compression(image, path)
    if compression:
        raise UserError(f"mask {path} is a {compression}, whose compression changes labels; save masks as PNG")
    bits, inverted = _sample_format(image, path)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("La", "RGBa"):  # colors multiplied by their opacity
        image = image.convert(image.mode.upper())
    mode, transparency = image.mode, image.info.get("transparency")
    if bits == 16 and not mode.startswith("I"):
        raise UserError(f"mask {path} has 16 bits per channel; save it as a gray or palette PNG of class ids")
    if mode == "P":
        return _palette_mask(image, path)
    if mode in ("RGB", "RGBA"):
        pixels = np.asarray(image).astype(np.int32)
        codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
        hidden = _hidden(pixels[..., :3], pixels[..., 3], path) if mode == "RGBA" else None
        if hidden is None and transparency is not None:
            hidden = codes == color_code(transparency)
        return StoredMask(path, "RGB", codes, hidden=_if_any(hidden))
    if mode == "LA":
        pixels = np.asarray(image)
        hidden = _hidden(pixels[..., 0], pixels[..., 1], path)
        return StoredMask(path, "gray", pixels[..., 0], hidden=_if_any(hidden))
    if mode not in ("L", "1", "F") and not mode.startswith("I"):
        raise UserError(f"mask {path} has mode {mode}; save it as a gray or palette PNG of class ids")
    pixels = np.asarray(image)
    if mode in ("1", "L") and (bits < 8 or inverted):
        return _few_bits_mask(pixels, path, bits, inverted and mode == "L")
    if pixels.dtype.kind == "f" and not (np.isfinite(pixels).all() and np.equal(pixels, np.round(pixels)).all()):
        raise UserError(f"mask {path} contains fractions; save it as a gray or palette PNG of class ids")
    hidden = pixels == transparency if isinstance(transparency, int) else None
    values = pixels if pixels.dtype == np.uint8 else pixels.astype(np.int64)
    return StoredMask(path, "gray", values, hidden=_if_any(hidden), hidden_by_value=True)


def read_mask(path: pathlib.Path, label_set: LabelSet, *, by_color: bool = False) -> UInt8[np.ndarray, "height width"]:
    """Reads a mask file as a label.

    The class ids are the indices of a palette PNG and the values of a gray one. The colors of an RGB image are looked
    up in the palette of the label set; each pixel must have the color of a class or the color of the ignore label.
    Transparency is ignored.

    Args:
      path: the file.
      label_set: the classes.
      by_color: also look up the values of gray masks as colors.

    Raises:
      UserError: the file is missing or truncated, or contains a color or an id that is not assigned to any class.
    """
    mask = load_mask(path)
    is_gray = mask.kind == "gray"
    if mask.palette is not None:
        is_gray = not (mask.palette[mask.palette != NO_COLOR] % _GRAY_CODE).any()
    if mask.kind == "RGB" or (by_color and is_gray):
        return look_up_colors(mask.codes(), _color_ids(label_set), path)
    check_label(mask.values, label_set, str(path))
    return mask.values.astype(np.uint8)


def check_label(label: Integer[np.ndarray, "height width"], label_set: LabelSet, name: str) -> None:
    """Checks that every id of a label is a class or the ignore label.

    Raises:
      UnknownLabels: with the first id that is neither; `name` says which mask contains it.
    """
    wrong = label[(label < 0) | ((label >= label_set.num_classes) & (label != IGNORE_LABEL))]
    if wrong.size:
        raise UnknownLabels(
            f"mask {name} contains label {int(wrong[0])}; labels must be below {label_set.num_classes}, the number of "
            f"classes, or {IGNORE_LABEL} to ignore a pixel",
            wrong,
        )


def look_up_colors(
    codes: Integer[np.ndarray, "height width"], ids: Mapping[int, int], path: pathlib.Path
) -> UInt8[np.ndarray, "height width"]:
    """The class id of each color code.

    Args:
      codes: see `StoredMask.codes`.
      ids: class id or ignore label of each color code.
      path: the file, for the message.

    Raises:
      UnknownLabels: a color is not in `ids`.
    """
    known = np.array(sorted(ids))
    position = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    match = known[position] == codes
    if not match.all():
        code = int(codes[~match][0])
        if code == NO_COLOR:
            raise UserError(f"mask {path} contains values that do not have a color; save class ids as a gray PNG")
        color = code_color(code)
        raise UnknownLabels(
            f"mask {path} contains color {color}, which is not assigned to any class; add it to classes.txt as "
            "`name r g b`",
            codes[~match],
            are_colors=True,
        )
    return np.array([ids[code] for code in known.tolist()], np.uint8)[position]


def _lossy_compression(image: Image.Image, path: pathlib.Path) -> str | None:
    if image.format in ("JPEG", "MPO", "AVIF"):
        return image.format.replace("MPO", "JPEG")
    if image.format == "TIFF" and "jpeg" in str(image.info.get("compression")):
        return "TIFF with JPEG compression"
    if image.format == "WEBP":
        # Chunks of a RIFF file: a name of four bytes, the length in four bytes, and the content, padded to even length.
        content, position = path.read_bytes(), 12
        while position + 8 <= len(content):
            if content[position : position + 4] == b"VP8 ":
                return "lossy WebP"
            length = int.from_bytes(content[position + 4 : position + 8], "little")
            position += 8 + length + length % 2
    return None


def _sample_format(image: Image.Image, path: pathlib.Path) -> tuple[int, bool]:
    """Bits per channel in the file, and whether 0 stands for white, which Pillow inverts."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24], False  # the bit depth, from IHDR
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (8,))
        return max(bits) if isinstance(bits, tuple) else bits, image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    return 8, False


def _few_bits_mask(pixels: np.ndarray, path: pathlib.Path, bits: int, inverted: bool) -> StoredMask:
    """A gray mask of which Pillow has stretched 1, 2 or 4 bits to the range 0 to 255, or inverted the values."""
    largest = 2**bits - 1
    shown = np.arange(256).clip(0, largest) * (255 // largest)
    values = pixels.astype(np.int64) if bits == 1 else pixels.astype(np.int64) // (255 // largest)
    if inverted:
        values, shown = largest - values, 255 - shown
    return StoredMask(path, "palette", values, shown * _GRAY_CODE)


def _palette_mask(image: Image.Image, path: pathlib.Path) -> StoredMask:
    stored = np.array(image.getpalette("RGB"), np.int64).reshape(-1, 3)[:256]
    codes = np.full(256, NO_COLOR)
    codes[: len(stored)] = stored @ np.array([1 << 16, 1 << 8, 1])
    transparency = image.info.get("transparency")
    alphas = np.full(256, 255, np.uint8)
    if isinstance(transparency, bytes):
        alphas[: len(transparency)] = np.frombuffer(transparency[:256], np.uint8)
    elif isinstance(transparency, int):
        alphas[transparency] = 0
    indices = np.asarray(image)
    hidden = alphas[indices] == 0 if alphas.min() == 0 else None
    return StoredMask(path, "palette", indices, codes, _if_any(hidden), hidden_by_value=True)


def _hidden(colors: np.ndarray, opacity: np.ndarray, path: pathlib.Path) -> Bool[np.ndarray, "height width"]:
    """The pixels of opacity 0."""
    if opacity.max() < 255 and opacity.min() < opacity.max() and (colors == colors[0, 0]).all():
        raise UserError(
            f"mask {path} has one color, and an alpha channel of values from {opacity.min()} to {opacity.max()}; save "
            "class ids as a gray or palette PNG"
        )
    return opacity == 0


def _if_any(hidden: np.ndarray | None) -> np.ndarray | None:
    return hidden if hidden is not None and hidden.any() else None
