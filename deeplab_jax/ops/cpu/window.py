"""The window of a convolution: which pixels its taps cover."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Window:
    """The window of a kernel on images of one size; the output has ceil(size / stride) pixels.

    Attributes:
      size: height and width of the images.
      taps: height and width of the kernel.
      stride: the stride along both axes, in pixels.
      rate: the atrous rate: the distance between taps in pixels.
      pads: pixels (before, after) that each axis is padded by.
    """

    def __init__(
        self, size: Sequence[int], taps: Sequence[int], *, stride: int, rate: int, pads: Sequence[tuple[int, int]]
    ):
        self.size, self.taps, self.stride, self.rate = tuple(size), tuple(taps), stride, rate
        self.pads = tuple((before, after) for before, after in pads)

    @classmethod
    def of(
        cls,
        size: Sequence[int],
        taps: Sequence[int],
        strides: Sequence[int],
        padding: str | Sequence[tuple[int, int]],
        rates: Sequence[int] | None = None,
    ) -> "Window | None":
        """Returns the window that the arguments of a `jax.lax` function describe, or None if this class has none."""
        stride, rate = {*strides}, {*(rates or (1, 1))}
        if len(stride) > 1 or len(rate) > 1:
            return None
        (stride,), (rate,) = stride, rate
        spans = [rate * (count - 1) + 1 for count in taps]
        pads = lax.padtype_to_pads(size, spans, strides, padding) if isinstance(padding, str) else padding
        out_size = [
            (extent + sum(pad) - span) // stride + 1 for extent, pad, span in zip(size, pads, spans, strict=True)
        ]
        window = cls(size, taps, stride=stride, rate=rate, pads=pads)
        keeps = out_size == [*window._out_size] and all(
            0 <= pad < span for pair, span in zip(window.pads, spans, strict=True) for pad in pair
        )
        return window if keeps else None

    def convolve(
        self, x: Float[Array, "batch height width channels"], kernel: Float[Array, "_ _ _ features"], *, groups: int = 1
    ) -> Float[Array, "batch out_height out_width features"]:
        """Computes XLA's convolution."""
        return lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            self.pads,
            rhs_dilation=(self.rate, self.rate),
            dimension_numbers=_DIMENSIONS,
            feature_group_count=groups,
        )

    @property
    def offsets(self) -> tuple[range, range]:
        """Offsets of the rows and the columns of taps from the first one, in pixels."""
        rows, columns = (range(0, taps * self.rate, self.rate) for taps in self.taps)
        return rows, columns

    def meetings(self) -> Iterator[tuple[int, int, tuple[slice, slice], tuple[slice, slice]]]:
        """Yields every tap that reaches the image: its row and column, the (rows, columns) of the input under it, and
        the (rows, columns) of the output for which it is inside.
        """
        for row, source_rows, target_rows in self._axes[0]:
            for column, source_columns, target_columns in self._axes[1]:
                yield row, column, (source_rows, source_columns), (target_rows, target_columns)

    def views(
        self, padded: Float[Array, "batch padded_height padded_width channels"]
    ) -> Iterator[tuple[int, int, Float[Array, "batch out_height out_width channels"]]]:
        """Yields every tap's row and column and the pixels of padded images under it, one per output."""
        stride, (rows, columns) = self.stride, self.offsets
        tall, wide = (stride * (extent - 1) + 1 for extent in self._out_size)
        for row, top in enumerate(rows):
            for column, left in enumerate(columns):
                yield row, column, padded[:, top : top + tall : stride, left : left + wide : stride]

    def columns_met(self) -> list[tuple[slice, slice]]:
        """Returns, per column of taps, the columns of the input under it and the columns of the output."""
        (_, width), (_, out_width), (_, (before, _)) = self.size, self._out_size, self.pads
        return [self._met(offset - before, width, out_width) for offset in self.offsets[1]]

    def scatter(
        self, of_tap: Callable[[int, int], Float[Array, "batch out_height out_width channels"]]
    ) -> Float[Array, "batch height width channels"]:
        """Sums what outputs give to the pixels under their taps: the transpose of `views`.

        The result is interleaved from one part per phase of the stride, each a sum of few shifted terms. A sum of one
        image per tap, in which the outputs are `stride` pixels apart, takes twice as long.

        Args:
          of_tap: takes a tap's row and column, and returns what every output gives to the pixel under that tap.
        """
        none = jnp.zeros_like(of_tap(0, 0))
        rows = []
        for taps_down in self._taps_of_phases(axis=0):
            columns = []
            for taps_right in self._taps_of_phases(axis=1):
                terms = (
                    _shift(_shift(of_tap(row, column), 1, down), 2, right)
                    for row, down in taps_down
                    for column, right in taps_right
                )
                columns.append(functools.reduce(jnp.add, terms, none))
            rows.append(jnp.stack(columns, axis=3))
        phases = jnp.stack(rows, axis=2)  # batch, height, phase of rows, width, phase of columns, channels
        height, width = (self.stride * extent for extent in none.shape[1:3])
        return phases.reshape(len(none), height, width, -1)[:, : self.size[0], : self.size[1]]

    def _taps_of_phases(self, *, axis: int) -> list[list[tuple[int, int]]]:
        """Returns, per phase, the taps over pixels `stride * u + phase`, with the shift s of their outputs u + s."""
        stride, offsets, (before, _) = self.stride, self.offsets[axis], self.pads[axis]
        return [
            [(tap, (at - offset) // stride) for tap, offset in enumerate(offsets) if (at - offset) % stride == 0]
            for at in range(before, before + stride)
        ]

    def share(self) -> float:
        """Returns the share of taps, over all output pixels, that fall inside the image."""
        rows, columns = (sum(target.stop - target.start for _, _, target in axis) for axis in self._axes)
        return rows * columns / math.prod((*self._out_size, *self.taps))

    @property
    def _out_size(self):
        return tuple(-(-extent // self.stride) for extent in self.size)

    @functools.cached_property
    def _axes(self):
        axes = []
        for extent, out_extent, offsets, (before, _) in zip(
            self.size, self._out_size, self.offsets, self.pads, strict=True
        ):
            met = [(tap, *self._met(offset - before, extent, out_extent)) for tap, offset in enumerate(offsets)]
            axes.append([(tap, source, target) for tap, source, target in met if target.stop > target.start])
        return axes

    def _met(self, shift: int, extent: int, out_extent: int) -> tuple[slice, slice]:
        """Returns pixels under a tap, `o * stride + shift` for output `o`, and the outputs for which it is inside."""
        stride = self.stride
        first = max(-(shift // stride), 0)
        end = max(min((extent - 1 - shift) // stride + 1, out_extent), first)
        return slice(first * stride + shift, end * stride + shift, stride), slice(first, end)


def place(x: Array, part: tuple[slice, slice], size: Sequence[int]) -> Array:
    """Returns an image of zeros with `x` at the (rows, columns) `part`."""
    margins = [(rows.start, extent - rows.stop) for rows, extent in zip(part, size, strict=True)]
    return jnp.pad(x, ((0, 0), *margins, (0, 0)))


def stack_taps(of_taps: dict[tuple[int, int], Array], kernel: Array | jax.ShapeDtypeStruct) -> Array:
    """Stacks the arrays of (row, column) into a kernel, with zeros for missing ones."""
    height, width, *shape = kernel.shape
    zero = jnp.zeros(shape, kernel.dtype)
    taps = [of_taps.get((row, column), zero) for row in range(height) for column in range(width)]
    return jnp.stack([tap.reshape(shape).astype(kernel.dtype) for tap in taps]).reshape(kernel.shape)


def _shift(x, axis, distance):
    """Returns x[i + distance] at i, zero beyond the ends."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (-distance, distance, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)
