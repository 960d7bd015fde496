"""The single operations that the suite `ops` measures, as data for all its workers.

Shapes are where the networks spend their time: the KerasCV guide's at 512x512, batch 1, and those of ASPP and the
decoder at output stride 16.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation on a square image.

    Attributes:
      kind: conv, depthwise, max-pool, resize or cross-entropy.
      size: height and width of the input.
      channels: channels of the input.
      features: output channels of a convolution.
      kernel: height and width of the window.
      stride: stride of the window.
      rate: distance between the taps.
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
        """The name in the table."""
        window = f" {self.kernel}x{self.kernel}" if self.kernel > 1 or self.kind == "conv" else ""
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        rate = f" rate {self.rate}" if self.rate > 1 else ""
        channels = f"{self.channels} to {self.features}" if self.features else f"{self.channels}"
        out = f" to {self.out_size}x{self.out_size}" if self.out_size else ""
        return f"{self.kind}{window}{stride}{rate}, {channels} channels, {self.size}x{self.size}{out}"

    @property
    def has_weights(self) -> bool:
        """True for convolutions."""
        return self.kind in ("conv", "depthwise")

    def multiply_adds(self) -> int:
        """Multiply-adds of the forward pass or of one gradient, padding included; 0 where they say little."""
        outputs = -(-self.size // self.stride)
        return outputs**2 * self.kernel**2 * self.channels * max(self.features, 1) if self.has_weights else 0

    def directions(self) -> dict[str, tuple[int, ...]]:
        """The measured directions: a name, and the arguments to differentiate by (empty for the forward pass).

        A train step computes both gradients of a convolution, or only the weight gradient of its first trained one.
        """
        if self.has_weights:
            return {"forward": (), "both gradients": (0, 1), "weight gradient": (1,)}
        return {"forward": (), "input gradient": (0,)}

    def shrunk(self) -> "Operation":
        """Returns the operation at an eighth of the size in each direction."""
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
    """Returns the operations, smaller with `quick`."""
    return [operation.shrunk() if quick else operation for operation in OPERATIONS]
