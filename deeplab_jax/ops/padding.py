"""How much a strided or atrous window pads: TensorFlow's rule and PyTorch's."""

from collections.abc import Sequence
from typing import Any

from jax.export import is_symbolic_dim

PADDINGS = ("same_upper", "symmetric")


def explicit_padding(
    style: str, spatial: Sequence[Any], window: Sequence[int], *, stride: int = 1, rate: int = 1
) -> tuple[tuple[Any, Any], ...]:
    """Pixels to pad (before, after) each spatial axis so that the output has ceil(size / stride) pixels.

    Args:
      style: `same_upper` pads the least that is needed and puts the odd pixel after (TensorFlow's SAME);
        `symmetric` pads rate * (window - 1) // 2 on both sides whatever the size (PyTorch; slim's `conv2d_same`),
        so that strided outputs stay centered on pixels 0, stride, 2 * stride...
      spatial: height and width of the input: integers, or symbolic dimensions of `jax.export`.
      window: height and width of the kernel, odd for `symmetric`.
      stride: of the window.
      rate: the atrous rate: distance between the window's taps.

    Raises:
      ValueError: unknown style, or an even window with `symmetric`.
    """
    if style not in PADDINGS:
        raise ValueError(f"padding {style!r} is not one of {', '.join(PADDINGS)}")
    if style == "symmetric":
        if any(extent % 2 == 0 for extent in window):
            raise ValueError(f"symmetric padding needs odd windows, not {tuple(window)}")
        return tuple((rate * (extent - 1) // 2,) * 2 for extent in window)
    padding = []
    for size, extent in zip(spatial, window, strict=True):
        span = rate * (extent - 1) + 1
        total = 0
        if span > 1:  # decided without the size, which may be a symbol
            total = (-(-size // stride) - 1) * stride + span - size
            total = total if span >= stride else max(total, 0)
        padding.append((total // 2, total - total // 2))
    return tuple(padding)


def lax_padding(style: str, pads: Sequence[tuple[Any, Any]]) -> str | Sequence[tuple[Any, Any]]:
    """The same padding as `jax.lax` takes it: where it depends on a symbolic size, by the rule's name alone.

    Args:
      style: as in `explicit_padding`.
      pads: what `explicit_padding` returned.
    """
    symbolic = any(is_symbolic_dim(pad) for pair in pads for pad in pair)
    return "SAME" if style == "same_upper" and symbolic else pads
