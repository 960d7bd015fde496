"""Sliding windows over a large image. Overlaps are blended; memory is bounded by a row of windows."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from deeplab_jax.data import LazyTiff, pad_to
from deeplab_jax.inference.computation import Arrays, Computation, Kind
from deeplab_jax.inference.stream import MOST_VALUES, full_batch, padded_size

# Fractions of a window. Neighbors overlap by at least a third. The outer twelfth of a window is ignored, because the
# network sees too little context there; over the next sixth the weight rises to one. In the middle of the smallest
# overlap, a sixth away from both borders, two windows have equal weights.
_HOP, _MARGIN, _RAMP = 2 / 3, 1 / 12, 1 / 6


def window_size(window: Sequence[int], output_stride: int, *, align_corners: bool) -> tuple[int, int]:
    """Rounds a window size up to multiples of the stride, so that its features align with those of the whole image.

    The result is at least two strides, so that neighbors overlap, and one pixel larger with `align_corners`, which puts
    the corners of the features on the corners of the window.
    """
    extra = int(align_corners)
    height, width = (max(2, math.ceil((extent - extra) / output_stride)) * output_stride + extra for extent in window)
    return height, width


def window_starts(extent: int, window: int, output_stride: int) -> list[int]:
    """Returns the start of each window along an axis: multiples of the stride, evenly spaced, overlapping by a third.

    The last window ends at the end of the image or less than a stride after it.
    """
    last = max(0, math.ceil((extent - window) / output_stride))
    hop = max(1, math.floor(window * _HOP / output_stride))
    count = math.ceil(last / hop)
    return [output_stride * (i * last // count) for i in range(count + 1)] if count else [0]


def blending_weights(starts: Sequence[int], window: int) -> Float[np.ndarray, "windows window"]:
    """Returns the weight of each pixel of each window along an axis. The weights of an image pixel sum to one."""
    total = starts[-1] + window
    centers = np.arange(window) + 0.5
    profiles = np.zeros((len(starts), total))
    for i, start in enumerate(starts):
        from_start = np.inf if i == 0 else centers
        from_end = np.inf if i == len(starts) - 1 else window - centers
        distance = np.minimum(from_start, from_end) * np.ones(window)
        profiles[i, start : start + window] = np.clip((distance - _MARGIN * window) / (_RAMP * window), 0, 1)
    profiles /= profiles.sum(axis=0)
    return np.stack([profile[start : start + window] for profile, start in zip(profiles, starts, strict=True)])


def blended_strips(
    image: Shaped[np.ndarray, "height width channels"] | LazyTiff,
    window: Sequence[int],
    predict: Callable[[list[Shaped[np.ndarray, "_ _ channels"]]], Float[np.ndarray, "n _ classes _"]],
    *,
    output_stride: int,
    pad_color: Sequence[int | float],
    batch_size: int = 1,
) -> Iterator[Float[np.ndarray, "_ classes width"]]:
    """Yields the class probabilities of an image, a few rows at a time from top to bottom.

    Keeps window height * image width * classes numbers in memory, plus those of a batch of windows.

    Args:
      image: the image, of which one batch of windows at a time is sliced; padded to a whole number of strides and at
        least to the window.
      window: (height, width) from `window_size`.
      predict: returns the class probabilities (n, window height, classes, window width) of n windows.
      output_stride: output stride of the network.
      pad_color: color of the padding, a value per channel.
      batch_size: the most windows that `predict` takes together, neighbors from left to right.

    Yields:
      The probabilities of the next rows. Every row appears once. The array is reused by the next iteration.
    """
    height, width = image.shape[:2]
    starts = [window_starts(extent, side, output_stride) for extent, side in zip((height, width), window, strict=True)]
    rows, columns = (blending_weights(axis, side) for axis, side in zip(starts, window, strict=True))
    total_width = starts[1][-1] + window[1]
    band = None
    for i, top in enumerate(starts[0]):
        for first in range(0, len(starts[1]), batch_size):
            lefts = starts[1][first : first + batch_size]
            seen = [pad_to(image[top : top + window[0], left : left + window[1]], window, pad_color) for left in lefts]
            for j, probabilities in enumerate(predict(seen), first):
                if band is None:
                    band = np.zeros((window[0], probabilities.shape[1], total_width), probabilities.dtype)
                weights = (rows[i][:, None, None] * columns[j]).astype(probabilities.dtype)
                band[:, :, starts[1][j] : starts[1][j] + window[1]] += weights * probabilities
        done = (starts[0][i + 1] if i + 1 < len(starts[0]) else height) - top
        yield band[:done, :, :width]
        band[:-done] = band[done:]
        band[-done:] = 0


def labeled_strips(
    computation: Computation,
    image: Shaped[np.ndarray, "height width channels"] | LazyTiff,
    window: tuple[int, int],
    *,
    kind: Kind,
    num_classes: int,
    batch_size: int | None,
    output_stride: int,
    pad_color: Sequence[int | float],
    check: Callable[[np.ndarray], None],
) -> Iterator[Arrays]:
    """Yields the labels of an image, a few rows at a time from top to bottom.

    Args:
      computation: computes the windows, several at a time.
      image: see `blended_strips`.
      window: see `blended_strips`.
      kind: the arrays to return. The probabilities are views that the next iteration changes.
      num_classes: number of classes of the arrays.
      batch_size: most windows per device; None chooses.
      output_stride: see `blended_strips`.
      pad_color: see `blended_strips`.
      check: called with the pixels of each window.
    """
    values = math.prod(window) * num_classes
    full = full_batch(computation, batch_size, values=values, most=MOST_VALUES)

    def predict(windows):
        for pixels in windows:
            check(pixels)
        return computation.window_probabilities(windows, size=padded_size(len(windows), computation, full=full))

    options = {"output_stride": output_stride, "pad_color": pad_color, "batch_size": full}
    for strip in blended_strips(image, window, predict, **options):
        confidence = None if kind == "labels" else strip.max(axis=1)
        yield strip.argmax(axis=1), confidence, strip if kind == "probabilities" else None
