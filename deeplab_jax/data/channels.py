"""Reading images with the channels and the bit depth of their files, for data sets that keep both."""

import importlib.util
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from PIL import Image

from deeplab_jax.data import images, tiff
from deeplab_jax.data.pixel_format import DTYPES
from deeplab_jax.data.tiles import Tile
from deeplab_jax.errors import UserError

#: Larger TIFFs are read by windows where that is possible, in pixels.
LAZY_PIXELS = 2**24

_BYTES = 4  # per pixel of an ordinary image; more of them count as more pixels
_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "La": "LA", "RGBa": "RGBA"}


def read_channels(
    path: pathlib.Path,
    channels: int | None = None,
    *,
    max_pixels: int | None = None,
    window: Tile | None = None,
) -> np.ndarray:
    """Reads an image file upright, with the channels and the bit depth that it has.

    Gray images have one channel, color images three, or four with transparency. Palettes and CMYK become RGB. A TIFF
    has as many channels as bands, on one page or on several of the same size.

    Args:
      path: the file.
      channels: the number of channels that it must have; default: any.
      max_pixels: largest height times width to accept (default: `images.MAX_PIXELS`). More than four bytes per pixel
        count as more pixels.
      window: the part to read; default: all.

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
        return image.read() if window is None else image.read(*window)


def read_size(path: pathlib.Path, *, max_pixels: int | None = None) -> tuple[int, int]:
    """(height, width) of the image that `read_channels` returns. Its pixels are not decoded.

    Raises:
      UserError: see `read_channels`.
    """
    if _is_tiff(path):
        with open_windows(path, max_pixels=max_pixels) as image:
            return image.shape[:2]
    return images.read_header(path, path).size


def _is_tiff(path: pathlib.Path) -> bool:
    try:
        return tiff.is_tiff(path)
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist") from None
    except OSError as error:
        raise UserError(f"image {path} cannot be read: {error.strerror}") from None


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
    if not _is_tiff(path):
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


class LazyTiff:
    """A large TIFF as an array of which only the parts that are sliced are read.

    Attributes:
      path: the file.
      shape: (height, width, channels).
      dtype: dtype of the slices.
    """

    ndim = 3

    def __init__(self, path: pathlib.Path, *, max_pixels: int | None = None):
        """Reads the header.

        Args:
          path: the file.
          max_pixels: see `open_windows`; bytes per pixel do not count, since the image is never in memory.

        Raises:
          UserError: see `open_windows`.
        """
        with tiff.open_tiff(path) as opened:
            height, width, _ = self.shape = opened.shape
            self.dtype = np.dtype(opened.dtype if opened.dtype.name in DTYPES else np.float32)
        _check_size(path, height, width, 1, max_pixels)
        self.path = path

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        """Reads [first row : last row, first column : last column]."""
        rows, columns = (slice(*axis.indices(extent)) for axis, extent in zip(part, self.shape, strict=False))
        with tiff.open_tiff(self.path) as opened:
            values = opened.read(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        return as_stored(values, f"image {self.path}")


def open_lazily(path: pathlib.Path, *, max_pixels: int | None = None) -> LazyTiff | None:
    """Opens a TIFF that is too large to be read at once, to slice it.

    Returns:
      None for smaller images, and for files that cannot be read in parts.

    Raises:
      UserError: the image is larger than `max_pixels`, see `open_windows`.
    """
    if not path.is_file() or not tiff.is_tiff(path) or importlib.util.find_spec("tifffile") is None:
        return None
    try:
        with tiff.open_tiff(path) as opened:
            height, width, _ = opened.shape
            is_lazy = height * width > LAZY_PIXELS >= opened.segment_pixels
    except UserError:  # Pillow may read it
        return None
    return LazyTiff(path, max_pixels=max_pixels) if is_lazy else None
