"""TPU chips: published figures, and the step time that they allow."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs. Google's published figures of one chip, but for `usable_bytes`.

    Attributes:
      flops: peak of bfloat16 products, floating-point operations a second.
      hbm_bytes: memory.
      hbm_bandwidth: bytes a second, reading and writing together.
      interconnect_bandwidth: bytes a second that a chip sends over all of its links together, which is half of the
        "bidirectional" figure.
      usable_bytes: of the memory, what the compiler of libtpu 0.0.42 lets a program use. Measured: it says so of one
        that needs more.
      source: of the published figures.
      topology_options: of `jax.experimental.topologies` where one chip is to be one device.
    """

    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    interconnect_bandwidth: float
    usable_bytes: int
    source: str
    topology_options: tuple[tuple[str, str], ...] = ()


#: By the name that topologies have. The pages were read as published in 2025 and 2026.
CHIPS = {
    "v4": Chip(
        flops=275e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1200e9,
        interconnect_bandwidth=300e9,  # six links of 50 GB/s
        usable_bytes=int(30.75 * GIB),
        source="https://cloud.google.com/tpu/docs/v4; links: arXiv 2304.01433, table 4",
        topology_options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(
        flops=197e12,
        hbm_bytes=16 * GIB,
        hbm_bandwidth=819e9,
        interconnect_bandwidth=200e9,
        usable_bytes=int(15.75 * GIB),
        source="https://cloud.google.com/tpu/docs/v5e",
    ),
    "v5p": Chip(
        flops=459e12,
        hbm_bytes=95 * GIB,
        hbm_bandwidth=2765e9,
        interconnect_bandwidth=600e9,
        usable_bytes=int(95.74 * GIB),  # the page rounds
        source="https://cloud.google.com/tpu/docs/v5p",
    ),
    "v6e": Chip(
        flops=918e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1638e9,
        interconnect_bandwidth=400e9,
        usable_bytes=int(31.25 * GIB),
        source="https://cloud.google.com/tpu/docs/v6e",
    ),
}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The seconds that each resource of a chip is busy for at its peak."""

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """Of a step that uses all three at once, at their peaks: no step is faster."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def bound(self) -> str:
        """Which resource decides."""
        return max(("compute", "memory", "interconnect"), key=lambda resource: getattr(self, resource))


def roofline(chip: Chip, *, flops: float, bytes_accessed: float, sent_bytes: int | float) -> Roofline:
    """The roofline of a program that computes, moves to and from memory, and sends so much on each chip.

    Args:
      chip: its published peaks.
      flops: floating-point operations of a step, on each chip.
      bytes_accessed: that operations read and write.
      sent_bytes: to other chips.
    """
    return Roofline(
        compute=flops / chip.flops,
        memory=bytes_accessed / chip.hbm_bandwidth,
        interconnect=sent_bytes / chip.interconnect_bandwidth,
    )
