"""The table of chips and the arithmetic of the roofline."""

import pytest

from deeplab_jax.analysis.tpu_specs import CHIPS, GIB, Chip, roofline

CHIP = Chip(
    flops=100.0,
    hbm_bytes=10,
    hbm_bandwidth=20.0,
    interconnect_bandwidth=5.0,
    usable_bytes=9,
    source="",
)


@pytest.mark.parametrize(
    ("needs", "seconds", "bound"),
    [
        ((300.0, 20.0, 5.0), 3.0, "compute"),
        ((300.0, 100.0, 5.0), 5.0, "memory"),
        ((300.0, 100.0, 35.0), 7.0, "interconnect"),
    ],
)
def test_the_slowest_resource_bounds_a_step(needs, seconds, bound):
    flops, bytes_accessed, sent_bytes = needs
    line = roofline(CHIP, flops=flops, bytes_accessed=bytes_accessed, sent_bytes=sent_bytes)
    assert (line.compute, line.memory, line.interconnect) == (flops / 100, bytes_accessed / 20, sent_bytes / 5)
    assert (line.seconds, line.bound) == (seconds, bound)


def test_a_v5e_by_hand():
    """1 s of matrix products, 2 s of memory traffic and 0.5 s of communication."""
    line = roofline(CHIPS["v5e"], flops=197e12, bytes_accessed=1638e9, sent_bytes=100e9)
    assert (line.compute, line.memory, line.interconnect, line.bound) == (1, 2, 0.5, "memory")


@pytest.mark.parametrize("name", CHIPS)
def test_published_figures_have_the_right_units(name):
    chip = CHIPS[name]
    assert chip.source.startswith(f"https://cloud.google.com/tpu/docs/{name}")
    assert 1e14 < chip.flops < 1e15
    assert 16 * GIB <= chip.hbm_bytes <= 95 * GIB
    assert 0.95 < chip.usable_bytes / chip.hbm_bytes < 1.01
    assert 8e11 < chip.hbm_bandwidth < 3e12
    assert 1e11 < chip.interconnect_bandwidth < 1e12
