"""Memory kept from step to step: when the process starts over, when it is left alone, and what it does to a step."""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

import pytest

from deeplab_jax.cli.host_memory import TUNABLES, VARIABLE

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is a setting of glibc")

_PROGRAM = """
import os, sys
from deeplab_jax import host_memory
host_memory.keep_memory()
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


_SUMMARY = """
import os, sys
import jax
from deeplab_jax.cli import host_memory
from deeplab_jax.cli import main as cli
if sys.argv[1] == "kept":
    os.environ[host_memory.VARIABLE] = host_memory.TUNABLES
try:
    cli.main(["summary", "--config", "quickstart"])
except SystemExit as stopped:
    assert stopped.code == 0
print("asynchronous:", jax.config.values["jax_cpu_enable_async_dispatch"])
"""


@pytest.mark.parametrize(("memory", "asynchronous"), [("kept", False), ("not kept", True)])
def test_the_command_computes_in_its_own_thread_where_memory_is_kept(memory, asynchronous):
    kept = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", _SUMMARY, memory],
        env=kept | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.endswith(f"asynchronous: {asynchronous}\n")


@pytest.mark.parametrize("value", ["", "glibc.malloc.check=0"])
def test_settings_of_the_user_are_left_alone(value):
    assert _run(JAX_PLATFORMS="cpu", **{VARIABLE: value}).startswith(f"{value} False")


def test_glibc_takes_the_settings():
    """It ignores a tunable that it does not know, so what it lists is looked at."""
    maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
    loader = next((line.split()[-1] for line in maps if "/ld-linux" in line), None)
    if loader is None:
        pytest.skip("this interpreter has no dynamic loader")
    listed = subprocess.run(
        [loader, "--list-tunables"], env=os.environ | {VARIABLE: TUNABLES}, capture_output=True, text=True, check=True
    ).stdout
    values = dict(line.split(":", 1) for line in listed.splitlines())
    for setting in TUNABLES.split(":"):
        name, value = setting.split("=")
        assert int(values[name].split()[0], 0) == int(value)


def test_the_documentation_has_the_settings():
    """With any others `prepare_jax` does nothing."""
    page = pathlib.Path(__file__).parents[2] / "docs" / "performance.md"
    assert f"export {VARIABLE}={TUNABLES}\n" in page.read_text()


# A program of hundreds of MB of temporaries whose argument has to be copied first, as a batch has.
_STEPS = """
import json, resource
import numpy as np
from deeplab_jax import host_memory
host_memory.prepare_jax()
import jax
import jax.numpy as jnp
from deeplab_jax import sharding
from deeplab_jax.config import base_config

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

@jax.jit
def step(images):
    wide = jnp.tile(images, (1, 1, 1, 12))
    return jnp.cumsum(jnp.cumsum(wide, axis=1), axis=2).sum()

mesh = mesh_lib.make_mesh(base_config().mesh)
images = np.ones((1, 1024, 1024, 4), np.float32)
rows = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF)
    step(sharding.to_global({"image": images}, mesh)["image"]).block_until_ready()
    rows.append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before.ru_minflt, resident()))
print(json.dumps([step.lower(images).compile().memory_analysis().temp_size_in_bytes, rows]))
"""


def test_a_step_finds_the_memory_of_the_one_before():
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment = kept | {VARIABLE: TUNABLES, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", _STEPS], env=environment, capture_output=True, text=True, check=True)
    temporaries, rows = json.loads(done.stdout)
    assert temporaries >= 96 * 2**20
    faults, resident = zip(*rows[2:], strict=True)
    # Faulting the temporaries in takes a fault for each 2 MiB if the system has large pages, or for each 4 KiB.
    assert statistics.median(faults) < temporaries / 2**22
    assert max(resident) < rows[1][1] + temporaries / 2


# What a compiler leaves: small pieces in use between free ones, which keep the free ones from the system.
_COMPILES = """
import resource, sys
from deeplab_jax import host_memory
host_memory._LONG = float(sys.argv[1])
host_memory.prepare_jax()
import jax
import jax.numpy as jnp

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

step = jax.jit(lambda x: jnp.sin(x) @ x).lower(jnp.ones((8, 8)))
pieces = [bytes(1000) for _ in range(300_000)]
pieces = pieces[::1000]
before = resident()
step.compile()
print(before - resident())
"""


@pytest.mark.parametrize(("long", "gives_back"), [(0, True), (3600, False)])
def test_what_compiling_took_is_given_back(long, gives_back):
    environment = os.environ | {VARIABLE: TUNABLES, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _COMPILES, str(long)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # of 300 MB; compiling takes some of its own
    assert (int(done.stdout) > 150e6) == gives_back
