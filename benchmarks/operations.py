"""The single operations that `ops` measures, as data for all its workers.

Shapes are where the networks spend their time: the guide's at 512x512, batch 1, and ASPP's and the decoder's of
output stride 16.
"""

import dataclasses

DIRECTIONS = ("forward", "input gradient", "weight gradient")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation on a square picture.

    Attributes:
      kind: conv, depthwise, max_pool, resize or cross_entropy.
      size: height and width of the input.
      channels: of the input.
      features: of the output of a conv.
      kernel: height and width of the window.
      stride: of the window.
      rate: of the taps.
      out_size: height and width of the result of a resize.
    """

    kind: str
    size: int
    channels: int
    features: int = 0
    kernel: int = 1
    stride: int = 1
    rate: int = 1
    out_size: int = 0

    def multiply_adds(self) -> int:
        """Of each direction, padding counted as data; 0 where multiply-adds say little."""
        outputs = -(-self.size // self.stride)
        if self.kind == "conv":
            return outputs**2 * self.kernel**2 * self.channels * self.features
        return outputs**2 * self.kernel**2 * self.channels if self.kind == "depthwise" else 0

    def directions(self) -> tuple[str, ...]:
        """Those that exist: only convolutions have weights."""
        return DIRECTIONS if self.kind in ("conv", "depthwise") else DIRECTIONS[:2]

    def shrunk(self) -> "Operation":
        """An eighth of the size in each direction."""
        return dataclasses.replace(self, size=max(2, self.size // 8), out_size=self.out_size // 8)


OPERATIONS = {
    "1x1, 64 to 256, 128x128": Operation("conv", 128, 64, 256),
    "1x1, 256 to 64, 128x128": Operation("conv", 128, 256, 64),
    "1x1, 1024 to 256, 32x32": Operation("conv", 32, 1024, 256),
    "3x3, 64 to 64, 128x128": Operation("conv", 128, 64, 64, kernel=3),
    "3x3, 256 to 256, 32x32": Operation("conv", 32, 256, 256, kernel=3),
    "3x3 stride 2, 256 to 256, 64x64": Operation("conv", 64, 256, 256, kernel=3, stride=2),
    "3x3, 304 to 256, 128x128": Operation("conv", 128, 304, 256, kernel=3),
    "3x3 rate 12, 2048 to 256, 32x32": Operation("conv", 32, 2048, 256, kernel=3, rate=12),
    "7x7 stride 2, 3 to 64, 512x512": Operation("conv", 512, 3, 64, kernel=7, stride=2),
    "depthwise 3x3, 256, 128x128": Operation("depthwise", 128, 256, kernel=3),
    "depthwise 3x3 stride 2, 144, 128x128": Operation("depthwise", 128, 144, kernel=3, stride=2),
    "depthwise 3x3 rate 12, 2048, 32x32": Operation("depthwise", 32, 2048, kernel=3, rate=12),
    "max-pool 3x3 stride 2, 64, 256x256": Operation("max_pool", 256, 64, kernel=3, stride=2),
    "resize to 512x512, 21, 128x128": Operation("resize", 128, 21, out_size=512),
    "resize to 128x128, 256, 32x32": Operation("resize", 32, 256, out_size=128),
    "cross-entropy, 21, 512x512": Operation("cross_entropy", 512, 21),
}


def selected(quick: bool) -> dict[str, Operation]:
    """The operations, shrunk for `--quick`."""
    return {name: operation.shrunk() if quick else operation for name, operation in OPERATIONS.items()}
