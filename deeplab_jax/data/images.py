"""Reading and encoding images and masks. Errors name the file."""

import contextlib
import dataclasses
import io
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from deeplab_jax.data import decoder_warnings, pixel_values, tiff
from deeplab_jax.data.image_files import HEIC_SUFFIXES, IMAGE_FORMATS
from deeplab_jax.data.pixel_values import ValueRange
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet

#: A path, a PIL image, or a uint8 RGB array of shape (height, width, 3).
ImageLike = str | os.PathLike | Image.Image | np.ndarray

#: The largest image that is decoded unless told otherwise, in pixels: 16,384 x 16,384, up to 5 GB of memory. A small
#: file can announce any number of pixels.
MAX_PIXELS = 2**28

# A damaged image raises an error here; OpenCV would print about it too.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_PILLOW_LIMIT = threading.Lock()  # held while `Image.MAX_IMAGE_PIXELS` is changed

#: The EXIF tag of the orientation.
ORIENTATION_TAG = 0x0112
#: What turns an image of each EXIF orientation upright.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STORED_FORMATS = ("JPEG", "PNG")  # in prepared data sets
_STORED_PREFIXES = (b"\xff\xd8\xff", b"\x89PNG")

# TIFF tag NewSubfileType: 1 marks a smaller copy of another page, 4 a transparency mask.
_SUBFILE_TYPE, _NOT_A_PAGE = 254, 1 | 4
_MOST_COPIES = 64

# Runs of equal ids suit deflate, and PNG's filters break them up. Without filters VOC's masks take half the bytes and a
# third of the time to decode, compared with cv2's defaults.
_MASK_PNG = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_COMPRESSION, 6)


def read_image(
    path: pathlib.Path, *, max_pixels: int | None = None, value_range: ValueRange | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image file as upright RGB.

    Applies the EXIF rotation, converts gray, palette, 16-bit, float and CMYK images, and draws transparent ones on
    white.

    Args:
      path: the file. Its content decides the format: one of `IMAGE_FORMATS`.
      max_pixels: largest height times width to accept (default: `MAX_PIXELS`); checked in the file's header, before
        pixels are decoded.
      value_range: the values that become black and white in images of more than 8 bits; values outside are clipped
        (default: 0 to 65535 for 16 bits, 0 to 1 for floats; images that do not fit are rejected).

    Raises:
      UserError: the file is missing, truncated, not an image, too large, has several pages, or values that are not in
        the range.
    """
    image, colors = load(path, max_pixels)
    return pixel_values.upright_rgb(image, path, colors=colors, value_range=value_range)


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
        return pixel_values.upright_rgb(image, name, colors=pixel_values.read_16_bit_colors(image, name))
    if not isinstance(image, np.ndarray):
        raise UserError(f"{name} is a {type(image).__name__}; pass a path, a PIL image or an array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"{name} is an array of dtype {image.dtype} and shape {image.shape}; "
            "pass uint8 RGB of shape (height, width, 3)"
        )
    return image


def encode_image(
    path: pathlib.Path, *, value_range: ValueRange | None = None, max_pixels: int | None = None
) -> tuple[bytes, tuple[int, int]]:
    """Reads an image file for storage.

    Args:
      path: the file.
      value_range: see `read_image`.
      max_pixels: see `read_image`.

    Returns:
      The encoded image, and its (height, width). Upright RGB JPEGs and PNGs keep their bytes; every other image becomes
      a PNG of the pixels that `read_image` returns.

    Raises:
      UserError: see `read_image`.
    """
    image, colors = load(path, max_pixels)
    plain = image.format in _STORED_FORMATS and image.mode == "RGB" and "transparency" not in image.info
    if plain and colors is None and image.getexif().get(ORIENTATION_TAG, 1) == 1:
        return path.read_bytes(), (image.height, image.width)
    pixels = pixel_values.upright_rgb(image, path, colors=colors, value_range=value_range)
    return encode_rgb(pixels), pixels.shape[:2]


def encode_rgb(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encodes RGB pixels as a PNG for `decode_image`."""
    return _encode_png(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), ())


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


def encode_palette_png(label: UInt8[np.ndarray, "height width"], label_set: LabelSet) -> bytes:
    """Encodes a label as a palette PNG (VOC's format): its indices are the class ids, and viewers show the colors."""
    image = Image.fromarray(label)
    image.putpalette(label_set.color_table().tobytes())
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


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
        with _open_header(io.BytesIO(encoded), name, _STORED_FORMATS) as image:
            return image.height, image.width
    except Exception:  # decoders raise all kinds of exceptions for damaged bytes
        raise UserError(f"the stored image of {name} is damaged; prepare the data set again") from None


def _decode(encoded: bytes, flags: int) -> np.ndarray | None:
    """Decoded pixels, or None if the bytes are not as prepared, damaged, or announce more pixels than cv2 accepts."""
    if not encoded.startswith(_STORED_PREFIXES):
        return None
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        return None


def open_image(file: pathlib.Path | bytes, max_pixels: int | None = None, *, name: object = None) -> Image.Image:
    """Opens an image or mask and loads its pixels, so that a truncated file fails here.

    Args:
      file: the file, or its content.
      max_pixels: largest height times width to accept (default: `MAX_PIXELS`).
      name: what to call the image in messages (default: the path).

    Raises:
      UserError: the file is missing, truncated, not an image, or too large.
    """
    return load(file, max_pixels, name)[0]


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """The header of an image file.

    Attributes:
      format: Pillow's name of the format.
      stored_size: (height, width) of the stored pixels.
      orientation: EXIF orientation, 1 to 8; 1 if there is none.
    """

    format: str
    stored_size: tuple[int, int]
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image, which `read_image` returns."""
        return self.stored_size[::-1] if self.orientation >= 5 else self.stored_size

    def turn_upright(self, label: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "rows columns"]:
        """Turns a label of the stored pixels as the EXIF orientation turns the image."""
        method = _TRANSPOSITIONS.get(self.orientation)
        return label if method is None else np.asarray(Image.fromarray(label).transpose(method))


def read_header(file: pathlib.Path | bytes, name: object) -> ImageHeader:
    """Reads the header of an image file. Its pixels are not decoded.

    Args:
      file: the file, or its content.
      name: what to call it in messages.

    Raises:
      UserError: see `open_image`.
    """
    with _name_image(name), _open_header(_readable(file), name, IMAGE_FORMATS) as image:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
        return ImageHeader(
            image.format, (image.height, image.width), orientation if orientation in _TRANSPOSITIONS else 1
        )


def _readable(file: pathlib.Path | bytes) -> pathlib.Path | io.BytesIO:
    return io.BytesIO(file) if isinstance(file, bytes) else file


def load(
    file: pathlib.Path | bytes, max_pixels: int | None = None, name: object = None
) -> tuple[Image.Image, np.ndarray | None]:
    """Opens an image as `open_image` does. Also returns the result of `pixel_values.read_16_bit_colors`."""
    name = file if name is None else name
    with _name_image(name), _open_header(_readable(file), name, IMAGE_FORMATS, max_pixels) as image:
        if _has_further_pages(image):
            raise UserError(f"image {name} has several pages or frames; save each as an image of its own")
        colors = pixel_values.read_16_bit_colors(image, name)
        image.load()
        return image, colors


@contextlib.contextmanager
def _name_image(path: object) -> Iterator[None]:
    """Translates the exceptions of decoders into one line that names the image."""
    try:
        with decoder_warnings.ignore():  # odd EXIF in real photos
            yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist") from None
    except UnidentifiedImageError:
        if bands := _count_bands(path):
            raise UserError(
                f"image {path} has {bands} bands, which 8-bit RGB cannot hold; to train on them, prepare the data with "
                f"--channels={bands}"
            ) from None
        if isinstance(path, pathlib.Path) and path.suffix.lower() in HEIC_SUFFIXES and "HEIF" not in IMAGE_FORMATS:
            raise UserError(
                f"image {path} needs pillow-heif; install it with: pip install 'deeplab_jax[heic]'"
            ) from None
        raise UserError(
            f"image {path} cannot be read: it is damaged, not an image, or not a usual "
            f"{', '.join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]}; convert it to JPEG or PNG"
        ) from None
    except Exception as error:  # decoders raise all kinds of exceptions for damaged files
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"image {path} cannot be read: {error.strerror}") from None
        raise UserError(f"image {path} cannot be read: {error}; it is truncated or not an image") from None


def _count_bands(path: object) -> int | None:
    """The number of bands of a TIFF that Pillow does not know; None if it is another file, or damaged."""
    if not isinstance(path, pathlib.Path) or not tiff.is_tiff(path):
        return None
    try:
        with tiff.open_tiff(path) as opened:
            return opened.shape[2]
    except UserError:
        return None


@contextlib.contextmanager
def _open_header(
    file: pathlib.Path | io.BytesIO, name: object, formats: Sequence[str], max_pixels: int | None = None
) -> Iterator[Image.Image]:
    """Opens an image without decoding its pixels, and closes it at the end of the block.

    `max_pixels` decides instead of Pillow's own limit, a global variable. For images beyond that, it is raised during
    the block.
    """
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    advice = "scale it down"
    if max_pixels is None:
        advice += ", cut it into tiles, or predict it with --max-megapixels"
    with contextlib.ExitStack() as stack:
        if isinstance(file, pathlib.Path):
            # Given a path, Pillow maps the file into memory, where it mixes up the rows of rotated TIFFs, and where a
            # file that becomes shorter ends the process.
            file = stack.enter_context(file.open("rb"))
        stack.enter_context(decoder_warnings.ignore())
        try:
            image = stack.enter_context(Image.open(file, formats=formats))
        except Image.DecompressionBombError:
            stack.enter_context(_PILLOW_LIMIT)
            stack.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = max(limit, Image.MAX_IMAGE_PIXELS)
            try:
                image = stack.enter_context(Image.open(file, formats=formats))
            except Image.DecompressionBombError:
                raise UserError(f"image {name} has more than {limit / 1e6:g} million pixels; {advice}") from None
        is_wide = pixel_values.has_16_bit_colors(image)
        if image.width * image.height * (1 + is_wide) > limit:
            counted = " of 16 bits per color, which count twice" if is_wide else ""
            raise UserError(
                f"image {name} has {image.width} x {image.height} pixels{counted}, more than {limit / 1e6:g} million; "
                f"{advice}"
            )
        yield image


def _has_further_pages(image: Image.Image) -> bool:
    """Whether an image is an animation or has pages, of which the first would stand for all.

    Smaller copies and transparency masks among the pages of a TIFF do not count, nor the previews in a JPEG.
    """
    if not getattr(image, "is_animated", False) or image.format == "MPO":
        return False
    if image.format != "TIFF":
        return True
    for page in range(1, _MOST_COPIES):
        try:
            image.seek(page)
        except EOFError:
            image.seek(0)
            return False
        if not image.tag_v2.get(_SUBFILE_TYPE, 0) & _NOT_A_PAGE:
            return True
    return True


def _encode_png(pixels: np.ndarray, parameters: Sequence[int]) -> bytes:
    done, encoded = cv2.imencode(".png", pixels, parameters)
    if not done:
        raise RuntimeError(f"cv2 could not encode a PNG of shape {pixels.shape}")
    return encoded.tobytes()
