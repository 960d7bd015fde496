"""Reading and encoding images and masks. Errors name the file."""

import io
import os
import pathlib
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps

from deeplab_jax.data.image_files import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from deeplab_jax.data.image_files import list_images as list_images
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL, LabelSet


#: A path, a PIL image, or a uint8 RGB array of shape (height, width, 3).
ImageLike = str | os.PathLike | Image.Image | np.ndarray

_ORIENTATION_TAG = 0x0112

# Runs of equal ids suit deflate, and PNG's filters break them up. Without filters VOC's masks take half the bytes and a
# third of the time to decode, compared with cv2's defaults.
_MASK_PNG = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_COMPRESSION, 6)


def read_image(path: pathlib.Path, *, max_pixels: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image file as upright RGB.

    Applies the EXIF rotation, converts gray, palette, 16-bit and CMYK images, and draws transparent ones on white.

    Args:
      path: the file.
      max_pixels: largest height times width to accept; checked in the file's header, before pixels are decoded.

    Raises:
      UserError: the file is missing, truncated, not an image, or too large.
    """
    return np.asarray(_upright_rgb(_open(path, max_pixels), path))


def as_image(image: ImageLike, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """Converts a path, a PIL image or an array to RGB pixels. Paths and PIL images are treated as in `read_image`.

    Args:
      image: the image; arrays are returned unchanged.
      name: what to call the image in messages.

    Raises:
      UserError: `image` is of another type, or an array of another shape or dtype.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(pathlib.Path(image))
    if isinstance(image, Image.Image):
        return np.asarray(_upright_rgb(image, name))
    if not isinstance(image, np.ndarray):
        raise UserError(f"{name} is a {type(image).__name__}; pass a path, a PIL image or an array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"{name} is an array of dtype {image.dtype} and shape {image.shape}; "
            "pass uint8 RGB of shape (height, width, 3)"
        )
    return image


def encode_image(path: pathlib.Path) -> tuple[bytes, tuple[int, int]]:
    """Reads an image file for storage.

    Returns:
      The encoded image, and its (height, width). Upright RGB JPEGs and PNGs keep their bytes; every other image becomes
      a PNG of the pixels that `read_image` returns.

    Raises:
      UserError: the file is missing, truncated, or not an image.
    """
    image = _open(path)
    plain = image.format in ("JPEG", "PNG") and image.mode == "RGB" and "transparency" not in image.info
    if plain and image.getexif().get(_ORIENTATION_TAG, 1) == 1:
        return path.read_bytes(), (image.height, image.width)
    pixels = np.asarray(_upright_rgb(image, path))
    return _encode_png(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), ()), pixels.shape[:2]


def decode_image(encoded: bytes, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes the bytes that `encode_image` returned to RGB pixels.

    Args:
      encoded: the bytes.
      name: the example's id, for the message.

    Raises:
      UserError: the bytes are damaged.
    """
    pixels = _decode(encoded, cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise UserError(f"the stored image of {name} is damaged; prepare the data set again")
    return pixels


def read_mask(path: pathlib.Path, label_set: LabelSet, *, by_color: bool = False) -> UInt8[np.ndarray, "height width"]:
    """Reads a mask file as a label.

    The class ids are the indices of a palette PNG and the values of a gray one. The colors of an RGB image are looked
    up in the palette of the label set; each pixel must have the color of a class or the color of the ignore label.

    Args:
      path: the file.
      label_set: the classes.
      by_color: also look up the values of gray masks as colors.

    Raises:
      UserError: the file is missing or truncated, or contains a color or an id that is not assigned to any class.
    """
    image = _open(path)
    if image.mode in ("RGB", "RGBA") or (by_color and image.mode != "P"):
        return _lookup_colors(np.asarray(image.convert("RGB")), label_set, path)
    if image.mode not in ("P", "L", "1", "I", "I;16"):
        raise UserError(f"mask {path} has mode {image.mode}; save it as a gray or palette PNG of class ids")
    label = np.asarray(image).astype(np.int64)
    check_label(label, label_set, str(path))
    return label.astype(np.uint8)


def check_label(label: Integer[np.ndarray, "height width"], label_set: LabelSet, name: str) -> None:
    """Checks that every id of a label is a class or the ignore label.

    Raises:
      UserError: with the first id that is neither; `name` says which mask contains it.
    """
    wrong = label[(label < 0) | ((label >= label_set.num_classes) & (label != IGNORE_LABEL))]
    if wrong.size:
        raise UserError(
            f"mask {name} contains label {int(wrong[0])}; labels must be below {label_set.num_classes}, the number of "
            f"classes, or {IGNORE_LABEL} to ignore a pixel"
        )


def encode_mask(label: UInt8[np.ndarray, "height width"]) -> bytes:
    """Encodes a label as a gray PNG whose values are the class ids."""
    return _encode_png(label, _MASK_PNG)


def decode_mask(encoded: bytes, name: str) -> UInt8[np.ndarray, "height width"]:
    """Decodes the bytes that `encode_mask` returned to a label.

    Args:
      encoded: the bytes.
      name: the example's id, for the message.

    Raises:
      UserError: the bytes are damaged.
    """
    label = _decode(encoded, cv2.IMREAD_UNCHANGED)
    if label is None or label.ndim != 2 or label.dtype != np.uint8:
        raise UserError(f"the stored mask of {name} is damaged; prepare the data set again")
    return label


def encoded_size(encoded: bytes, name: str) -> tuple[int, int]:
    """The (height, width) of an encoded image or mask, from its header.

    Args:
      encoded: the bytes.
      name: the example's id, for the message.

    Raises:
      UserError: the bytes are damaged.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UserError(f"the stored image of {name} is damaged; prepare the data set again") from None


def _decode(encoded: bytes, flags: int) -> np.ndarray | None:
    """Decoded pixels, or None if the bytes are damaged or announce more pixels than cv2 accepts."""
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        return None


def _open(path: pathlib.Path, max_pixels: int | None = None) -> Image.Image:
    """Opens an image and loads its pixels, so that a truncated file fails here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # odd EXIF in real photos
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if max_pixels is not None and image.width * image.height > max_pixels:
                    raise UserError(
                        f"image {path} has {image.width} x {image.height} pixels, "
                        f"more than {max_pixels / 1e6:g} million; scale it down"
                    )
                image.load()
                return image
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(f"image {path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises any of these for damaged files
        raise UserError(f"image {path} cannot be read: {error}; it is truncated or not an image") from None


def _upright_rgb(image: Image.Image, path: pathlib.Path | str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray((values >> 8 if values.max() > 255 else values).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    try:
        return image.convert("RGB")
    except ValueError:
        raise UserError(f"image {path} has mode {image.mode}, which cannot be converted to RGB") from None


def _lookup_colors(pixels: np.ndarray, label_set: LabelSet, path: pathlib.Path) -> np.ndarray:
    to_code = np.array([65536, 256, 1])
    known = np.array([*range(label_set.num_classes), IGNORE_LABEL])
    known_codes = label_set.color_table()[known].astype(np.int64) @ to_code
    codes = pixels.astype(np.int64) @ to_code
    order = np.argsort(known_codes)
    position = np.minimum(np.searchsorted(known_codes[order], codes), len(known) - 1)
    match = known_codes[order][position] == codes
    if not match.all():
        color = tuple(int(value) for value in pixels[~match][0])
        raise UserError(
            f"mask {path} contains color {color}, which is not assigned to any class; add it to classes.txt as "
            "`name r g b`"
        )
    return known[order][position].astype(np.uint8)


def _encode_png(pixels: np.ndarray, parameters: Sequence[int]) -> bytes:
    done, encoded = cv2.imencode(".png", pixels, parameters)
    if not done:
        raise RuntimeError(f"cv2 could not encode a PNG of shape {pixels.shape}")
    return encoded.tobytes()
