"""Reading and encoding images and label maps, exactly, with errors that name the file."""

import io
import os
import pathlib
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps

from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL, LabelSet

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

# A file, a PIL image, or RGB pixels. Any array: `as_image` says what is wrong with it.
ImageLike = str | os.PathLike | Image.Image | np.ndarray

_ORIENTATION_TAG = 0x0112

# Runs of equal ids are what deflate is for; PNG's filters break them up. VOC's masks take half the bytes and a third of
# the time to decode of what cv2 writes unasked.
_LABEL_MAP_PNG = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_COMPRESSION, 6)


def read_image(path: pathlib.Path, *, max_pixels: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """An image file as upright RGB: EXIF rotation applied, gray, palette, 16-bit and CMYK converted, alpha on white.

    Args:
      path: the file.
      max_pixels: of height times width; the file's header tells before a pixel is decoded.

    Raises:
      UserError: the file is missing, truncated, no image or too large.
    """
    return np.asarray(_upright_rgb(_open(path, max_pixels), path))


def as_image(image: ImageLike, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """RGB pixels of an image in whatever form: what `read_image` makes of a file or a PIL image, an array itself.

    Raises:
      UserError: it is no image; `name` tells which.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(pathlib.Path(image))
    if isinstance(image, Image.Image):
        return np.asarray(_upright_rgb(image, name))
    if not isinstance(image, np.ndarray):
        raise UserError(f"{name} is a {type(image).__name__}; give a path, a PIL image or an array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"{name} is an array of {image.dtype} and shape {image.shape}; give uint8 RGB of (height, width, 3)"
        )
    return image


def encode_image(path: pathlib.Path) -> tuple[bytes, tuple[int, int]]:
    """An image file's bytes for storing, and its height and width.

    An upright RGB JPEG or PNG keeps its bytes; anything else is stored as the PNG of `read_image`.

    Raises:
      UserError: the file is missing, truncated or no image.
    """
    image = _open(path)
    plain = image.format in ("JPEG", "PNG") and image.mode == "RGB" and "transparency" not in image.info
    if plain and image.getexif().get(_ORIENTATION_TAG, 1) == 1:
        return path.read_bytes(), (image.height, image.width)
    pixels = np.asarray(_upright_rgb(image, path))
    return _encode_png(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), ()), pixels.shape[:2]


def decode_image(encoded: bytes, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """RGB pixels of bytes that `encode_image` made.

    Raises:
      UserError: the bytes are damaged; `name` tells whose they are.
    """
    pixels = _decode(encoded, cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise UserError(f"the stored image of {name} is damaged; prepare the data set again")
    return pixels


def read_label_map(
    path: pathlib.Path, label_set: LabelSet, *, by_color: bool = False
) -> UInt8[np.ndarray, "height width"]:
    """A mask file as class ids.

    A palette PNG gives its indices and a gray one its values; an RGB one, or any but a palette PNG with `by_color`, is
    looked up in the label set's colors and must match one (or the void color) in every pixel.

    Raises:
      UserError: the file is missing, truncated, or holds a color or an id that is none of the classes.
    """
    image = _open(path)
    if image.mode in ("RGB", "RGBA") or (by_color and image.mode != "P"):
        return _lookup_colors(np.asarray(image.convert("RGB")), label_set, path)
    if image.mode not in ("P", "L", "1", "I", "I;16"):
        raise UserError(f"mask {path} has mode {image.mode}; save it as a gray or palette PNG of class ids")
    ids = np.asarray(image).astype(np.int64)
    check_ids(ids, label_set, str(path))
    return ids.astype(np.uint8)


def check_ids(ids: Integer[np.ndarray, "height width"], label_set: LabelSet, name: str) -> None:
    """Raises a UserError naming the first id that is neither a class nor void."""
    wrong = ids[(ids < 0) | ((ids >= label_set.num_classes) & (ids != IGNORE_LABEL))]
    if wrong.size:
        raise UserError(
            f"mask {name} holds label {int(wrong[0])}: it must be below {label_set.num_classes}, the number of classes, "
            f"or {IGNORE_LABEL} for void"
        )


def encode_label_map(label_map: UInt8[np.ndarray, "height width"]) -> bytes:
    """A single-channel PNG whose values are the ids: exact for 0 to 255, with no palette to be expanded."""
    return _encode_png(label_map, _LABEL_MAP_PNG)


def decode_label_map(encoded: bytes, name: str) -> UInt8[np.ndarray, "height width"]:
    """Ids of bytes that `encode_label_map` made.

    Raises:
      UserError: the bytes are damaged; `name` tells whose they are.
    """
    label_map = _decode(encoded, cv2.IMREAD_UNCHANGED)
    if label_map is None or label_map.ndim != 2 or label_map.dtype != np.uint8:
        raise UserError(f"the stored mask of {name} is damaged; prepare the data set again")
    return label_map


def encoded_size(encoded: bytes, name: str) -> tuple[int, int]:
    """Height and width of an encoded image, from its header.

    Raises:
      UserError: the bytes are damaged; `name` tells whose they are.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UserError(f"the stored image of {name} is damaged; prepare the data set again") from None


def _decode(encoded: bytes, flags: int) -> np.ndarray | None:
    """Pixels, or None if the bytes are damaged or claim more pixels than cv2 accepts."""
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        return None


def _open(path: pathlib.Path, max_pixels: int | None = None) -> Image.Image:
    """The image with its pixels read, so that a truncated file shows here."""
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
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises each of these for damaged files
        raise UserError(f"image {path} cannot be read: {error}; it is truncated or no image") from None


def _upright_rgb(image: Image.Image, path: pathlib.Path | str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit gray: Pillow would clip it at 255
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray((values >> 8 if values.max() > 255 else values).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    try:
        return image.convert("RGB")
    except ValueError:
        raise UserError(f"image {path} has mode {image.mode}, which cannot be made RGB") from None


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
            f"mask {path} holds the color {color}, which is no class's; add it to classes.txt as `name r g b`"
        )
    return known[order][position].astype(np.uint8)


def _encode_png(pixels: np.ndarray, parameters: Sequence[int]) -> bytes:
    done, encoded = cv2.imencode(".png", pixels, parameters)
    if not done:
        raise RuntimeError(f"cv2 could not encode a PNG of shape {pixels.shape}")
    return encoded.tobytes()
