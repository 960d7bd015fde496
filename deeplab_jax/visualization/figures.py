"""Matplotlib figures without pyplot, which would keep every figure alive in a global list."""

import functools
import io
import pathlib
import warnings
from typing import TYPE_CHECKING

from deeplab_jax.errors import UserError
from deeplab_jax.files import write_atomically

if TYPE_CHECKING:  # matplotlib takes long to import
    from matplotlib.figure import Figure

_FORMATS = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "svg", "pdf", "eps")


def new_figure(width: int | float, height: int | float, *, dpi: int = 100) -> "Figure":
    """Creates a figure of a size in inches, at `dpi` pixels per inch. Notebooks display it."""
    return _notebook_figure()(figsize=(width, height), dpi=dpi, facecolor="white")


def save_figure(figure: "Figure", path: pathlib.Path | None) -> "Figure":
    """Saves a figure if `path` is not None; its suffix is the format, PNG without one. Returns the figure.

    Raises:
      UserError: the suffix is not a format, or the file cannot be written.
    """
    if path is not None:
        file_format = path.suffix.lstrip(".").lower() or "png"
        if file_format not in _FORMATS:
            raise UserError(f"cannot write {path}: the suffix is not a format of figures; use .{', .'.join(_FORMATS)}")
        write_atomically(path, _render(figure, file_format))
    return figure


@functools.cache
def _notebook_figure() -> type:
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that notebooks display as PNG."""

        def _repr_png_(self) -> bytes:
            return _render(self, "png")

    return NotebookFigure


def _render(figure: "Figure", file_format: str) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")  # a letter of a class name is drawn as a box
        figure.savefig(buffer, format=file_format)
    return buffer.getvalue()
