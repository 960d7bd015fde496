"""Pixel values of every kind as 8-bit RGB, by rules that do not depend on the other pixels of an image.

Values of more than 8 bits are mapped linearly: a range of values becomes black to white. The range is the one that the
file's type implies (0 to 65535 for 16 bits, 0 to 1 for floats), or `value_range`. Files often contain other values, for
example 12 bits of a medical camera in 16. Such a file is rejected rather than stored nearly black. It is never scaled
by its own extremes, which would make images of a data set incomparable.
"""

import math
import pathlib

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageOps

from deeplab_jax.errors import UserError

#: The values that become black and white.
ValueRange = tuple[int | float, int | float]

_ORIENTATION, _PHOTOMETRIC, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 274, 262, 258, 339  # TIFF tags; the first is in EXIF too
_WHITE_IS_ZERO, _SIGNED = 0, 2  # values of _PHOTOMETRIC and _SAMPLE_FORMAT

_DARK = 0.25  # an image whose values stay below this fraction of the range looks as if it had another range
_ROUNDING = 1e-4  # by which floats may leave the range
_STRIP = 2**20  # values that are scaled at a time, to save memory


def upright_rgb(
    image: Image.Image,
    name: pathlib.Path | str,
    *,
    colors: UInt16[np.ndarray, "rows columns channels"] | None = None,
    value_range: ValueRange | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Converts an image to upright 8-bit RGB.

    Transparent pixels are drawn on white. The fourth band of a TIFF is transparency only if its values are all 0 or the
    maximum: it often is infrared, whatever the file declares.

    Args:
      image: the image.
      name: its path, or what to call it in messages.
      colors: the result of `read_16_bit_colors`.
      value_range: the values that become black and white, for images of more than 8 bits (default: see above).

    Raises:
      UserError: the image has values outside its range or far below the end of it, a band that is not transparency, or
        colors that cannot be converted.
    """
    orientation = image.getexif().get(_ORIENTATION, 1)
    upright = _with_8_bits(image, name, colors, value_range)
    if orientation != 1:
        upright.getexif()[_ORIENTATION] = orientation
        upright = ImageOps.exif_transpose(upright)
    if upright.mode in ("La", "RGBa"):  # colors multiplied by their opacity
        upright = upright.convert(upright.mode.upper())
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright if upright.mode == "RGBA" else upright.convert("RGBA")
        upright = _draw_on_white(rgba, name, is_tiff=image.format == "TIFF")
    try:
        return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))
    except ValueError:
        raise UserError(f"image {name} has mode {upright.mode}, which cannot be converted to RGB") from None


def has_16_bit_colors(image: Image.Image) -> bool:
    """Whether an image has more than 8 bits per color. Call it before the pixels are loaded."""
    if image.mode == "F" or image.mode.startswith("I"):
        return False  # a single channel, of which Pillow keeps all bits
    if image.format == "TIFF":
        return int(np.max(image.tag_v2.get(_BITS_PER_SAMPLE, 1))) > 8
    return image.format == "PNG" and any(";16" in str(tile[3]) for tile in image.tile)


def read_16_bit_colors(
    image: Image.Image, name: pathlib.Path | str
) -> UInt16[np.ndarray, "rows columns channels"] | None:
    """Reads an image with 16 bits per color, of which Pillow keeps only 8. Call it before the pixels are loaded.

    Args:
      image: the image.
      name: its path, or what to call it in messages.

    Returns:
      RGB or RGBA values, or None if the image is of another kind.

    Raises:
      UserError: the image is damaged or of a rare kind.
    """
    if not has_16_bit_colors(image):
        return None
    if not image.tile:
        raise UserError(f"{name} has 16 bits per color, of which Pillow has kept 8; pass its path instead")
    position = image.fp.tell()
    image.fp.seek(0)
    encoded = np.frombuffer(image.fp.read(), np.uint8)
    image.fp.seek(position)
    image.load()  # finds damage with less memory
    values = None
    if image.mode in ("RGB", "RGBA"):
        values = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    bands = len(image.getbands())
    if values is None or values.dtype != np.uint16 or values.ndim != 3 or values.shape[2] < bands:
        raise UserError(f"image {name} is damaged or an unusual 16-bit {image.format}; save it again as 8-bit RGB")
    to_rgb = cv2.COLOR_BGR2RGB if values.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(values, to_rgb, dst=values)[..., :bands]


def _with_8_bits(image, name, colors, value_range) -> Image.Image:
    """The image in a mode of 8 bits per channel; `image` itself if it has one."""
    tags = getattr(image, "tag_v2", {})
    is_signed = _SIGNED in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1))
    if colors is not None:
        scaled = _scale(colors[..., :3], name, (0, 2**16 - 1), value_range)
        if colors.shape[2] == 4:
            scaled = np.dstack([scaled, scale_to_8_bits(colors[..., 3], 0, 2**16 - 1)])
        return Image.fromarray(scaled)
    if image.mode == "F":
        values, implied = np.asarray(image), (0.0, 1.0)
    elif image.mode.startswith("I;16"):
        bits = int(np.max(tags.get(_BITS_PER_SAMPLE, 16)))
        values, implied = np.asarray(image), (0, 2**bits - 1)
    elif image.mode == "I":
        is_png = image.format == "PNG"  # older releases of Pillow open 16-bit PNGs in this mode
        values, implied = np.asarray(image), (0, 2**16 - 1) if is_png else None
        if not is_signed and tags:
            values = values.view(np.uint32)
    elif image.mode == "L" and is_signed:
        values, implied = np.asarray(image).view(np.int8), None
    else:
        return image
    if "transparency" in image.info:
        raise UserError(f"image {name} has a transparent color and more than 8 bits; save it with 8 bits")
    scaled = _scale(values, name, implied, value_range)
    return Image.fromarray(~scaled if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else scaled)


def _scale(values: np.ndarray, name: object, implied: ValueRange | None, given: ValueRange | None) -> np.ndarray:
    """Maps a range of values to 0 to 255: the given one, or the one that the file's type implies."""
    low, high = values.min().item(), values.max().item()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"image {name} contains NaN or infinite values; replace them")
    if given is None:
        kind = "float" if values.dtype.kind == "f" else "integer"
        problem = _find_problem(low, high, implied)
        if problem:
            example = ",".join(_text(bound) for bound in usual_range(low, high, values.dtype.kind))
            fits = implied is not None and implied[0] <= low and high <= implied[1]
            keep = f" ({implied[0]:g},{implied[1]:g} leaves this one dark)" if fits else ""
            raise UserError(
                f"image {name} has {kind} values from {_text(low)} to {_text(high)}{problem}; choose which values are "
                f"black and white in all your images{keep}, for example --value-range={example}"
            )
    return scale_to_8_bits(values, *(given or implied))


def _find_problem(low: int | float, high: int | float, implied: ValueRange | None) -> str | None:
    if implied is None:
        return ", of which black and white are not known"
    tolerance = _ROUNDING * implied[1]
    if low < implied[0] - tolerance or high > implied[1] + tolerance:
        return f", but the range of this kind of file is {implied[0]:g} to {implied[1]:g}"
    if 0 < high <= _DARK * implied[1]:
        return f", which would be nearly black in the range {implied[0]:g} to {implied[1]:g}"
    return None


def usual_range(low: int | float, high: int | float, kind: str) -> ValueRange:
    """The smallest usual range that contains the values; from `low` to `high` if none does.

    Args:
      low: smallest value.
      high: largest value.
      kind: NumPy's kind of their dtype; "f" for floats.
    """
    if low >= 0:
        usual = (0.1, 0.25, 1, 255, 1000, 10_000) if kind == "f" else [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
        return 0, next((bound for bound in usual if high <= bound), high)
    return low, high


def _text(value: int | float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def scale_to_8_bits(values: np.ndarray, low: int | float, high: int | float) -> np.ndarray:
    """Maps `low` to 0 and `high` to 255, linearly; values outside are clipped."""
    low, high = float(low), float(high)  # bounds that are integers must fit the dtype
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, _STRIP * len(values) // values.size)
    for start in range(0, len(values), rows):
        strip = np.clip(values[start : start + rows], low, high) - low
        scaled[start : start + rows] = np.rint(strip * 255.0 / (high - low))
    return scaled


def _draw_on_white(image: Image.Image, name: pathlib.Path | str, *, is_tiff: bool) -> Image.Image:
    opacity = image.getchannel("A")
    low, high = opacity.getextrema()
    if high == 0:
        raise UserError(f"image {name} is completely transparent; remove its alpha channel if it has colors")
    if is_tiff and sum(opacity.histogram()[1:255]):
        raise UserError(
            f"image {name} has a fourth band with values from {low} to {high}, for example infrared or transparency; "
            "save its three color bands alone, or keep all bands in a data set of --channels=4"
        )
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
