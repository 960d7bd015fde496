"""TIFF files of any number of bands, read whole or by windows.

Pillow reads TIFFs of up to four bands of 8 bits. This reads the others: bands of 8 to 64 bits, stored together or one
by one, or as pages of one size. Only the strips and tiles that a window touches are read and decoded, so a tiled file
of any size costs the memory of the window.

tifffile parses the file, and imagecodecs decompresses it; both are optional. A decompressor is told how many bytes a
tile has, so a small file cannot expand to more than its header says, and the header is checked against a limit first.
"""

import contextlib
import importlib.util
import logging
import math
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_jax.errors import UserError

if TYPE_CHECKING:
    import tifffile

#: The first bytes of TIFF and BigTIFF files, of either byte order.
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_MOST_PAGES = 64
_NO_COMPRESSION = 1
# TIFF's numbers of lossless compressions that decompress to a size that is known: LZW, Deflate, PackBits, LZMA, Zstd.
_COMPRESSIONS = {_NO_COMPRESSION, 5, 8, 32946, 32773, 34925, 50000}
_NO_PREDICTOR = 1
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # photometric interpretations

# How rows and columns are turned for each orientation: (swap axes, reverse rows, reverse columns).
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def is_tiff(path: pathlib.Path) -> bool:
    """Whether a file begins like a TIFF.

    Raises:
      OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(4) in SIGNATURES


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns (height, width, channels) as an orientation of TIFF and EXIF says, 1 to 8; others change nothing."""
    swap, rows, columns = _TURNS.get(orientation, _TURNS[1])
    image = image.swapaxes(0, 1) if swap else image
    return image[:: -1 if rows else 1, :: -1 if columns else 1]


class Tiff:
    """An open TIFF file.

    Attributes:
      shape: (height, width, channels) of the upright image.
      dtype: dtype of the values.
      segment_pixels: number of pixels of a tile or strip, the smallest part that is read.
    """

    def __init__(self, file: "tifffile.TiffFile", name: object):
        self._file, self._name = file, name
        pages = _image_pages(file, name)
        first = pages[0]
        for page in pages:
            _check_page(page, name)
            if page.shaped[1:4] != first.shaped[1:4] or page.dtype != first.dtype:
                raise UserError(f"image {name} has pages of different sizes or types; save each as an image of its own")
        self._pages = pages
        orientation = first.tags.valueof("Orientation", 1)
        self._orientation = orientation if orientation in _TURNS else 1
        self._stored = tuple(int(extent) for extent in first.shaped[2:4])
        channels = sum(int(page.shaped[0] * page.shaped[4]) for page in pages)
        height, width = self._stored[::-1] if self._orientation >= 5 else self._stored
        self.shape, self.dtype = (height, width, channels), first.dtype
        self.segment_pixels = math.prod(_segment(first))

    def read(self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None) -> np.ndarray:
        """Reads a window, or everything.

        Args:
          top: first row of the upright image.
          left: first column.
          height: number of rows; default: all.
          width: number of columns; default: all.

        Returns:
          An array (rows, columns, channels) in the file's dtype; smaller at the borders of the image.

        Raises:
          UserError: the file is truncated or damaged.
        """
        rows = _clip(top, height, self.shape[0])
        columns = _clip(left, width, self.shape[1])
        swap, flip_rows, flip_columns = _TURNS[self._orientation]
        # The same window in the stored image: undo the reversals, then the swap.
        rows = (self.shape[0] - rows[1], self.shape[0] - rows[0]) if flip_rows else rows
        columns = (self.shape[1] - columns[1], self.shape[1] - columns[0]) if flip_columns else columns
        rows, columns = (columns, rows) if swap else (rows, columns)
        values = np.zeros((rows[1] - rows[0], columns[1] - columns[0], self.shape[2]), self.dtype)
        with _errors_name(self._name):
            channel = 0
            for page in self._pages:
                channel = _read_page(page, self._file.filehandle, values, rows, columns, channel)
        if self._pages[0].photometric == _WHITE_IS_ZERO and self.dtype.kind == "u":
            values = np.iinfo(self.dtype).max - values
        return turn_upright(values, self._orientation)


@contextlib.contextmanager
def open_tiff(path: pathlib.Path) -> Iterator[Tiff]:
    """Opens a TIFF for the duration of the block. Reads its header alone.

    Raises:
      UserError: tifffile is not installed, or the file is damaged or of a kind that is not read.
    """
    try:
        import tifffile
    except ImportError:
        raise UserError(
            f"reading {path} by its bands needs tifffile; install it with: pip install 'deeplab_jax[tiff]'"
        ) from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damage raises an error here; tifffile would print it too
    with contextlib.ExitStack() as stack:
        with _errors_name(path):
            file = stack.enter_context(tifffile.TiffFile(path))
            opened = Tiff(file, path)
        yield opened


def _image_pages(file: "tifffile.TiffFile", name: object) -> list["tifffile.TiffPage"]:
    """The pages without smaller copies and transparency masks."""
    pages = []
    for number, page in enumerate(file.pages):
        if number >= _MOST_PAGES:
            raise UserError(f"image {name} has more than {_MOST_PAGES} pages; save each as an image of its own")
        page = page.aspage()
        if not (page.is_reduced or page.is_mask):
            pages.append(page)
    if not pages:
        raise UserError(f"image {name} contains no page")
    return pages


def _check_page(page: "tifffile.TiffPage", name: object) -> None:
    if page.dtype is None or page.dtype.kind not in "uif" or page.dtype.itemsize > 8:
        raise UserError(f"image {name} has values of a rare kind; save it with 8 or 16 bits, or as float32")
    if len(page.shaped) != 5 or 0 in page.shaped or page.shaped[1] != 1:
        raise UserError(f"image {name} is a volume or empty; save each layer as an image of its own")
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        raise UserError(f"image {name} has a palette or colors other than RGB; its bands cannot be read as they are")
    if page.compression not in _COMPRESSIONS:
        raise UserError(
            f"image {name} has the compression {int(page.compression)}; save it uncompressed or with LZW, Deflate, "
            "PackBits, LZMA or Zstd"
        )
    is_packed = page.bitspersample not in (8, 16, 32, 64)
    is_plain = page.compression == _NO_COMPRESSION and page.predictor == _NO_PREDICTOR and not is_packed
    if not is_plain and importlib.util.find_spec("imagecodecs") is None:
        raise UserError(
            f"image {name} is compressed; install imagecodecs with: pip install 'deeplab_jax[tiff]', or save it "
            "uncompressed"
        )


def _clip(start: int, length: int | None, extent: int) -> tuple[int, int]:
    stop = extent if length is None else min(extent, start + length)
    return min(start, stop), stop


def _read_page(page: Any, file: Any, values: np.ndarray, rows: Any, columns: Any, channel: int) -> int:
    """Copies the window of a page to `values`, from a channel on; returns the next channel."""
    planes, _, height, width, samples = page.shaped
    segment = _segment(page)
    if min(segment) < 1:
        raise ValueError("its tiles are empty")
    down, across = (math.ceil(extent / side) for extent, side in zip((height, width), segment, strict=True))
    # Tiles can be larger than the image, which the header's size does not limit.
    if segment[0] * segment[1] > 4 * max(height, 1024) * max(width, 1024):
        raise ValueError("its tiles are much larger than the image")
    for plane in range(planes):
        for i in range(rows[0] // segment[0], math.ceil(rows[1] / segment[0])):
            for j in range(columns[0] // segment[1], math.ceil(columns[1] / segment[1])):
                decoded = _decode(page, file, (plane * down + i) * across + j)
                if decoded is None:  # a tile that was never written
                    continue
                top, left = i * segment[0], j * segment[1]
                first, last = max(rows[0], top), min(rows[1], top + decoded.shape[0])
                start, stop = max(columns[0], left), min(columns[1], left + decoded.shape[1])
                if decoded.shape[2] != samples or last < min(rows[1], top + segment[0], height):
                    raise ValueError("a tile is cut short")
                values[
                    first - rows[0] : last - rows[0],
                    start - columns[0] : stop - columns[0],
                    channel : channel + samples,
                ] = decoded[first - top : last - top, start - left : stop - left]
        channel += samples
    return channel


def _segment(page: Any) -> tuple[int, int]:
    """Height and width of a page's tiles or strips."""
    _, _, height, width, _ = page.shaped
    return (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)


def _decode(page: Any, file: Any, index: int) -> np.ndarray | None:
    """The values (rows, columns, samples) of a strip or tile; None for one that was never written."""
    offset, count = page.dataoffsets[index], page.databytecounts[index]
    if count == 0:
        return None
    if offset + count > file.size:
        raise ValueError("it is truncated")
    file.seek(offset)
    decoded, _, _ = page.decode(file.read(count), index)
    return decoded[0]


@contextlib.contextmanager
def _errors_name(name: object) -> Iterator[None]:
    """Translates the exceptions of tifffile and of decompressors into one line that names the image."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"image {name} does not exist") from None
    except Exception as error:  # they raise all kinds of exceptions for damaged files
        is_named = isinstance(error, (ValueError, RuntimeError, OSError)) and str(error)
        line = str(error).partition("\n")[0] if is_named else "its header makes no sense"
        raise UserError(f"image {name} cannot be read: {line}; it is truncated or damaged") from None
