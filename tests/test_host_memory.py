"""Large pages: when the process starts over, and when it is left alone."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

from deeplab_jax.host_memory import TUNABLES, VARIABLE

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is a setting of glibc")

_PROGRAM = """
import os, sys
from deeplab_jax import host_memory
host_memory.use_large_pages()
print(os.environ.get(host_memory.VARIABLE), "jax" in sys.modules, *sys.argv[1:])
"""


def _run(**variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in (VARIABLE, "JAX_PLATFORMS")}
    command = [sys.executable, "-c", _PROGRAM, "an argument", "--and=another"]
    return subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=True).stdout


def test_a_process_for_the_processor_starts_over_with_the_setting_and_its_arguments():
    assert _run(JAX_PLATFORMS="cpu") == f"{TUNABLES} False an argument --and=another\n"


@pytest.mark.parametrize("platforms", ["cuda", "tpu", "cuda,cpu"])
def test_a_process_for_an_accelerator_is_left_alone(platforms):
    assert _run(JAX_PLATFORMS=platforms).startswith("None")


@pytest.mark.parametrize("value", ["", "glibc.malloc.check=0"])
def test_settings_of_the_user_are_left_alone(value):
    assert _run(JAX_PLATFORMS="cpu", **{VARIABLE: value}).startswith(f"{value} False")


def test_glibc_takes_the_setting():
    """It ignores a tunable that it does not know, so what it lists is looked at."""
    maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
    loader = next((line.split()[-1] for line in maps if "/ld-linux" in line), None)
    if loader is None:
        pytest.skip("this interpreter has no dynamic loader")
    listed = subprocess.run(
        [loader, "--list-tunables"], env=os.environ | {VARIABLE: TUNABLES}, capture_output=True, text=True, check=True
    ).stdout
    name, value = TUNABLES.split("=")
    (line,) = (line for line in listed.splitlines() if line.startswith(f"{name}:"))
    assert int(line.split()[1], 0) == int(value)
