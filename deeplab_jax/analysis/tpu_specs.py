"""Published figures of TPU chips, and the lower bound of the step time that follows from them."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs: Google's published figures of one chip, except for `usable_bytes`.

    Attributes:
      flops: peak of bfloat16 matrix products, in floating-point operations per second.
      hbm_bytes: memory.
      hbm_bandwidth: bytes per second, reading and writing together.
      interconnect_bandwidth: bytes per second that a chip sends over all of its links, half of the "bidirectional"
        figure.
      network_bandwidth: bytes per second that a host sends over the network of the data center, divided by its chips;
        None if Google does not publish it.
      usable_bytes: memory that the compiler of libtpu 0.0.42 allows a program to use. Measured, from its message about
        programs that need more.
      source: source of the published figures.
      topology_options: options of `jax.experimental.topologies` that make one chip one device.
    """

    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    interconnect_bandwidth: float
    usable_bytes: int
    source: str
    network_bandwidth: float | None = None
    topology_options: tuple[tuple[str, str], ...] = ()


#: Chips by their names in topologies. The sources were read in 2025 and 2026.
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
        network_bandwidth=3.125e9,  # 6.4 Tbps per pod of 256 chips
        usable_bytes=int(15.75 * GIB),
        source="https://cloud.google.com/tpu/docs/v5e",
    ),
    "v5p": Chip(
        flops=459e12,
        hbm_bytes=95 * GIB,
        hbm_bandwidth=2765e9,
        interconnect_bandwidth=600e9,
        network_bandwidth=6.25e9,  # 50 Gbps
        usable_bytes=int(95.74 * GIB),  # the source rounds
        source="https://cloud.google.com/tpu/docs/v5p",
    ),
    "v6e": Chip(
        flops=918e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1638e9,
        interconnect_bandwidth=400e9,
        network_bandwidth=12.5e9,  # 25.6 Tbps per pod of 256 chips
        usable_bytes=int(31.25 * GIB),
        source="https://cloud.google.com/tpu/docs/v6e",
    ),
}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The number of seconds that each resource of a chip is busy at its peak."""

    compute: float
    memory: float
    interconnect: float
    network: float = 0.0

    @property
    def seconds(self) -> float:
        """The time of a step that uses all resources at once, at their peaks. No step is faster."""
        return max(self.compute, self.memory, self.interconnect, self.network)

    @property
    def bound(self) -> str:
        """The resource that takes the longest."""
        return max(("compute", "memory", "interconnect", "network"), key=lambda resource: getattr(self, resource))


def roofline(
    chip: Chip, *, flops: float, bytes_accessed: float, sent_bytes: int | float, network_bytes: int | float = 0
) -> Roofline:
    """The roofline of a program on a chip.

    Args:
      chip: the chip.
      flops: floating-point operations per step and chip.
      bytes_accessed: bytes that operations read and write, per step and chip.
      sent_bytes: bytes that a chip sends to others of its slice, per step.
      network_bytes: bytes that its host sends to other slices for it, per step. Without a published bandwidth they take
        no time.
    """
    return Roofline(
        compute=flops / chip.flops,
        memory=bytes_accessed / chip.hbm_bandwidth,
        interconnect=sent_bytes / chip.interconnect_bandwidth,
        network=network_bytes / chip.network_bandwidth if chip.network_bandwidth else 0.0,
    )
