"""Parameter paths and shapes: saved networks depend on them."""

import itertools
import pathlib

import pytest

from tests.goldens import make_parameters

GOLDEN = (pathlib.Path(make_parameters.__file__).with_name("parameters.txt")).read_text().splitlines()
EXPECTED = dict(line.removeprefix("# ").rsplit(": ", 1) for line in GOLDEN if line.startswith("# "))


def listed(name: str) -> list[str]:
    start = next(number for number, line in enumerate(GOLDEN) if line.startswith(f"# {name}: ")) + 1
    return list(itertools.takewhile(lambda line: not line.startswith("# "), GOLDEN[start:]))


def test_every_network_has_a_golden():
    assert list(make_parameters.networks()) == list(EXPECTED)


# `test_backbones` counts the parameters of these, too.
DEEP = ("mit_b3", "mit_b4", "mit_b5", "xception65", "xception71", "resnet152_v1_beta", "resnet152_v2_kerascv")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in EXPECTED])
def test_parameter_paths_and_shapes_stay(name):
    lines = make_parameters.lines(make_parameters.networks()[name])
    if name in make_parameters.LISTED:
        assert lines == listed(name)
    assert f"{len(lines)} {make_parameters.digest(lines)}" == EXPECTED[name]
