"""Reading images with the channels and the bit depth of their files, for data sets that keep both."""

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from PIL import Image

from deeplab_jax.data import images, tiff
from deeplab_jax.data.pixel_format import DTYPES
from deeplab_jax.errors import UserError

_BYTES = 4  # per pixel of an ordinary image; more of them count as more pixels
_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "La": "LA", "RGBa": "RGBA"}


def read_channels(path: pathlib.Path, channels: int | None = None, *, max_pixels: int | None = None) -> np.ndarray:
    """Reads an image file upright, with the channels and the bit depth that it has.

    Gray images have one channel, color images three, or four with transparency. Palettes and CMYK become RGB. A TIFF has
    as many channels as bands, on one page or on several of the same size.

    Args:
      path: the file.
      channels: the number of channels that it must have; default: any.
      max_pixels: largest height times width to accept (default: `images.MAX_PIXELS`). More than four bytes per pixel
        count as more pixels.

    Returns:
      An array (height, width, channels) of uint8, uint16 or float32. Other integers and floats become float32.

    Raises:
      UserError: the file is missing, truncated, not an image, too large, has another number of channels, or has values
        that are NaN or infinite.
    """
    with open_windows(path, max_pixels=max_pixels) as image:
        if channels is not None and image.shape[2] != channels:
            raise UserError(
                f"image {path} has {image.shape[2]} channels; {channels} are expected, the same in all images"
            )
        return image.read()


class Windows(Protocol):
    """An image that is read by windows."""

    shape: tuple[int, int, int]

    def read(self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None) -> np.ndarray:
        """Reads a window, or everything, as `read_channels` does; smaller at the borders of the image."""


@contextmanager
def open_windows(path: pathlib.Path, *, max_pixels: int | None = None) -> Iterator[Windows]:
    """Opens an image to read it by windows. Only TIFFs are read in parts; others are decoded at once.

    Args:
      path: the file.
      max_pixels: see `read_channels`. It limits the image, not the window.

    Raises:
      UserError: see `read_channels`.
    """
    try:
        is_tiff = tiff.is_tiff(path)
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist") from None
    except OSError as error:
        raise UserError(f"image {path} cannot be read: {error.strerror}") from None
    if not is_tiff:
        yield _Decoded(_read_with_pillow(path, max_pixels))
        return
    with tiff.open_tiff(path) as opened:
        height, width, channels = opened.shape
        _check_size(path, height, width, channels * opened.dtype.itemsize, max_pixels)
        yield _TiffWindows(path, opened)


class _Decoded:
    def __init__(self, values: np.ndarray):
        self._values, self.shape = values, values.shape

    def read(self, top=0, left=0, height=None, width=None):
        bottom, right = (None if extent is None else start + extent for start, extent in ((top, height), (left, width)))
        return np.ascontiguousarray(self._values[top:bottom, left:right])


class _TiffWindows:
    def __init__(self, path: pathlib.Path, opened: tiff.Tiff):
        self._path, self._opened, self.shape = path, opened, opened.shape

    def read(self, top=0, left=0, height=None, width=None):
        return as_stored(self._opened.read(top, left, height, width), f"image {self._path}")


def as_stored(values: np.ndarray, name: object) -> np.ndarray:
    """The values as uint8, uint16 or float32.

    Raises:
      UserError: a value is NaN or infinite.
    """
    if values.dtype.name not in DTYPES:
        values = values.astype(np.float32)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{name} contains NaN or infinite values; replace them, for example by 0")
    return np.ascontiguousarray(values)


def _check_size(path: pathlib.Path, height: int, width: int, bytes_per_pixel: int, max_pixels: int | None) -> None:
    limit = images.MAX_PIXELS if max_pixels is None else max_pixels
    weight = max(1.0, bytes_per_pixel / _BYTES)
    if height * width * weight > limit:
        counted = f" of {bytes_per_pixel} bytes, which count {weight:g} times" if weight > 1 else ""
        raise UserError(
            f"image {path} has {width} x {height} pixels{counted}, more than {limit / 1e6:g} million; cut it into "
            "tiles, or allow it with --max-megapixels"
        )


def _read_with_pillow(path: pathlib.Path, max_pixels: int | None) -> np.ndarray:
    image, colors = images.load(path, max_pixels)
    orientation = image.getexif().get(images.ORIENTATION_TAG, 1)
    if colors is None and "transparency" in image.info:
        image = image.convert("RGBA")
    return as_stored(tiff.turn_upright(_values(image, colors), orientation), f"image {path}")


def _values(image: Image.Image, colors: np.ndarray | None) -> np.ndarray:
    if colors is not None:
        return colors
    if image.mode == "I" and image.format == "PNG":  # older releases of Pillow open 16-bit PNGs in this mode
        values = np.asarray(image).astype(np.uint16)
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
    else:
        values = np.asarray(image.convert(_MODES.get(image.mode, image.mode)))
    return values[..., None] if values.ndim == 2 else values


def describe(values: np.ndarray) -> str:
    """The channels and the dtype of an array, for messages."""
    plural = "" if values.shape[2] == 1 else "s"
    return f"{values.shape[2]} channel{plural} of {values.dtype}"
