"""Padding of strided and atrous windows: TensorFlow's rule and PyTorch's."""

from collections.abc import Sequence

#: Values of `model.padding`.
PADDINGS = ("same_upper", "symmetric")


def lax_padding(
    style: str, window: Sequence[int], *, rate: int | Sequence[int] = 1
) -> str | tuple[tuple[int, int], ...]:
    """Returns the `padding` argument of `jax.lax` for which the output has ceil(size / stride) pixels.

    `valid` is the exception: it pads nothing, and the output has floor((size - window) / stride) + 1 pixels.

    Args:
      style: `same_upper` pads as little as possible and puts the odd pixel after the image (TensorFlow's SAME);
        `symmetric` pads rate * (window - 1) // 2 pixels on both sides whatever the size (PyTorch; slim's
        `conv2d_same`), so that strided outputs stay centered on pixels 0, stride, 2 * stride...; or `valid`.
      window: height and width of the window, odd for `symmetric`.
      rate: the atrous rate: the distance between taps in pixels, along both axes or along each.

    Raises:
      ValueError: the style is unknown, or the window is even and the style is `symmetric`.
    """
    if style == "valid":
        return ((0, 0),) * len(window)
    if style not in PADDINGS:
        raise ValueError(f"padding {style!r} is not one of {', '.join((*PADDINGS, 'valid'))}")
    if max(window) == 1:  # nothing to pad, even where sizes are symbols and lax could not tell
        return ((0, 0),) * len(window)
    if style == "same_upper":
        return "SAME"
    if any(extent % 2 == 0 for extent in window):
        raise ValueError(f"symmetric padding needs odd windows, not {tuple(window)}")
    rates = (rate,) * len(window) if isinstance(rate, int) else rate
    return tuple((rate * (extent - 1) // 2,) * 2 for rate, extent in zip(rates, window, strict=True))
