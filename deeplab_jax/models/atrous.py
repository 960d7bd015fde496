"""Atrous conversion: which units of a backbone keep their stride and which trade it for a rate.

DeepLabv3 (arXiv 1706.05587), section 3.1: the network subsamples until it reaches the output stride. From there on,
strides become 1 and later kernels are dilated by the subsampling that was left out, so that the same parameters compute
the same features on a denser grid.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Unit(NamedTuple):
    """How one unit of a backbone runs.

    Attributes:
      stride: the stride of its strided convolution.
      rate: the rate of this convolution.
      later_rate: the rate of later convolutions in the same unit.
    """

    stride: int
    rate: int
    later_rate: int

    def spread(self, factor: int) -> "Unit":
        """Returns the unit with its rates multiplied: multi-grid (DeepLabv3, section 3.2.1)."""
        return self._replace(rate=factor * self.rate, later_rate=factor * self.later_rate)


def plan_units(
    strides: Sequence[int], output_stride: int, *, stem_stride: int, spread_converted: bool = False
) -> list[Unit]:
    """Converts the published strides of units for an output stride.

    A converted unit samples its input densely, so its own taps keep the rate reached before it. Later units are dilated
    by its stride as well.

    Args:
      strides: the published stride of each unit, in order.
      output_stride: image pixels per output pixel of the last unit.
      stem_stride: image pixels per input pixel of the first unit.
      spread_converted: whether a converted unit already runs at the rate of later units, as in
        segmentation_models.pytorch. Its features then differ from those of the strided network.

    Raises:
      ValueError: the strides do not pass through `output_stride`.
    """
    current, rate, plan = stem_stride, 1, []
    for stride in strides:
        if current == output_stride:
            before, rate = rate, rate * stride
            plan.append(Unit(stride=1, rate=rate if spread_converted else before, later_rate=rate))
        else:
            plan.append(Unit(stride=stride, rate=1, later_rate=1))
            current *= stride
    if current != output_stride:
        raise ValueError(f"output stride {output_stride} cannot be reached: the network's strides lead to {current}")
    return plan


def plan_stages(
    blocks: Sequence[int],
    is_strided: Callable[[int, int], bool],
    output_stride: int,
    *,
    stem_stride: int,
    multi_grid: Sequence[int] = (),
    cascade_blocks: int = 0,
    spread_converted: bool = False,
) -> list[tuple[int, int, Unit]]:
    """Plans the units of a ResNet.

    Args:
      blocks: number of units in each stage.
      is_strided: whether the unit at (stage, block), both counted from 0, has a stride of 2.
      output_stride: image pixels per output pixel of the last unit.
      stem_stride: image pixels per input pixel of the first unit.
      multi_grid: factors of the rates of the last stage's units, or () for ones (DeepLabv3, section 3.2.1).
      cascade_blocks: number of copies of the last stage that follow it (section 3.2), with the same multi-grid.
      spread_converted: see `plan_units`.

    Returns:
      Stage, block and plan of each unit, in order.

    Raises:
      ValueError: the strides do not pass through `output_stride`.
    """
    last = len(blocks) - 1
    counts = (*blocks, *(blocks[last],) * cascade_blocks)
    positions = [(stage, block) for stage, count in enumerate(counts) for block in range(count)]
    strides = [2 if is_strided(*position) else 1 for position in positions]
    units = plan_units(strides, output_stride, stem_stride=stem_stride, spread_converted=spread_converted)
    factors = tuple(multi_grid) or (1,) * blocks[last]
    return [
        (stage, block, unit.spread(factors[block]) if stage >= last else unit)
        for (stage, block), unit in zip(positions, units, strict=True)
    ]


def scale_rates(rates: Sequence[int], stated_stride: int, output_stride: int) -> tuple[int, ...]:
    """Scales ASPP rates stated for one output stride to another (DeepLabv3, section 3.3: doubled at stride 8).

    Raises:
      ValueError: a scaled rate is not a whole number of at least 1.
    """
    scaled = [rate * stated_stride / output_stride for rate in rates]
    if any(rate < 1 or rate != int(rate) for rate in scaled):
        raise ValueError(
            f"atrous_rates {tuple(rates)}, stated for stride {stated_stride}, are not whole at stride {output_stride}"
        )
    return tuple(int(rate) for rate in scaled)
