"""The single operations that `ops` measures, as data for all its workers.

Shapes are where the networks spend their time: the guide's at 512x512, batch 1, and ASPP's and the decoder's of
output stride 16.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation on a square image.

    Attributes:
      kind: conv, depthwise, max-pool, resize or cross-entropy.
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

    def name(self) -> str:
        """What the table calls it."""
        window = f" {self.kernel}x{self.kernel}" if self.kernel > 1 or self.kind == "conv" else ""
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        rate = f" rate {self.rate}" if self.rate > 1 else ""
        channels = f"{self.channels} to {self.features}" if self.features else f"{self.channels}"
        out = f" to {self.out_size}x{self.out_size}" if self.out_size else ""
        return f"{self.kind}{window}{stride}{rate}, {channels} channels, {self.size}x{self.size}{out}"

    @property
    def has_weights(self) -> bool:
        """Whether it is a convolution."""
        return self.kind in ("conv", "depthwise")

    def multiply_adds(self) -> int:
        """Of the forward pass or one gradient, padding counted as data; 0 where multiply-adds say little."""
        outputs = -(-self.size // self.stride)
        return outputs**2 * self.kernel**2 * self.channels * max(self.features, 1) if self.has_weights else 0

    def directions(self) -> dict[str, tuple[int, ...]]:
        """What is measured: the name, and the arguments whose gradients it is, none for the forward pass.

        A train step takes both gradients of a convolution, or of its first trained one the weights' alone.
        """
        if self.has_weights:
            return {"forward": (), "both gradients": (0, 1), "weight gradient": (1,)}
        return {"forward": (), "input gradient": (0,)}

    def shrunk(self) -> "Operation":
        """An eighth of the size in each direction."""
        return dataclasses.replace(self, size=max(2, self.size // 8), out_size=self.out_size // 8)


OPERATIONS = (
    Operation("conv", 128, 64, 256),
    Operation("conv", 128, 256, 64),
    Operation("conv", 32, 1024, 256),
    Operation("conv", 128, 64, 64, kernel=3),
    Operation("conv", 32, 256, 256, kernel=3),
    Operation("conv", 64, 256, 256, kernel=3, stride=2),
    Operation("conv", 128, 304, 256, kernel=3),
    Operation("conv", 256, 128, 128, kernel=3),
    Operation("conv", 32, 2048, 256, kernel=3, rate=12),
    Operation("conv", 512, 3, 64, kernel=7, stride=2),
    Operation("depthwise", 128, 256, kernel=3),
    Operation("depthwise", 128, 144, kernel=3, stride=2),
    Operation("depthwise", 32, 2048, kernel=3, rate=12),
    Operation("max-pool", 256, 64, kernel=3, stride=2),
    Operation("resize", 128, 21, out_size=512),
    Operation("resize", 32, 256, out_size=128),
    Operation("cross-entropy", 512, 21),
)


def selected(quick: bool) -> list[Operation]:
    """The operations, shrunk for `--quick`."""
    return [operation.shrunk() if quick else operation for operation in OPERATIONS]
