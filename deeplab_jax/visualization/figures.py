"""Figures that need no screen."""

import functools
import io
import pathlib
from typing import TYPE_CHECKING, Any

from deeplab_jax.files import write_atomically

if TYPE_CHECKING:  # takes longer to import than everything else here
    from matplotlib.figure import Figure


def labeled_axes(figure: "Figure", position: int, title: str) -> Any:
    axes = figure.add_subplot(position)
    axes.set_xlabel("step")
    axes.set_ylabel(title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("constrained")
    return axes


@functools.cache
def figure_class() -> type:
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that notebooks show without pyplot, which keeps every figure alive in a global list."""

        def _repr_png_(self) -> bytes:
            return rendered(self, "png")

    return NotebookFigure


def new_figure(width: int | float, height: int | float) -> "Figure":
    """Inches; 100 pixels each."""
    return figure_class()(figsize=(width, height), dpi=100, facecolor="white")


def rendered(figure: "Figure", kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def saved(figure: "Figure", path: pathlib.Path | None) -> "Figure":
    if path is not None:
        write_atomically(path, rendered(figure, path.suffix.lstrip(".") or "png"))
    return figure
