"""Tuned malloc: which processes restart themselves, and how memory is kept from step to step."""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

import pytest

from deeplab_jax.cli import launch, main, malloc
from deeplab_jax.cli.malloc import SWITCH, TUNABLES, VARIABLE

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

_PROGRAM = """
import os, sys
from deeplab_jax import __main__
from deeplab_jax.cli import malloc, main
def command():
    print(os.environ.get(malloc.VARIABLE), "jax" in sys.modules, *sys.argv[1:])
    sys.exit(0)
main.main = command
__main__.main()
"""


def _run(*arguments: str, **variables: str) -> str:
    """Runs a command that only prints its GLIBC_TUNABLES, whether JAX is imported, and its arguments."""
    inherited = {name: value for name, value in os.environ.items() if name not in (VARIABLE, "JAX_PLATFORMS", SWITCH)}
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    return subprocess.run(command, env=inherited | variables, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_training_and_evaluation_restart_with_their_arguments(command):
    output = _run(command, "an argument", "--and=another", JAX_PLATFORMS="cpu")
    assert output == f"{TUNABLES} False {command} an argument --and=another\n"


@pytest.mark.parametrize("command", ["predict", "demo", "benchmark-latency", "--version"])
def test_other_commands_do_not_restart(command):
    assert _run(command, JAX_PLATFORMS="cpu") == f"None False {command}\n"


@pytest.mark.parametrize("platforms", ["cuda", "tpu", "cuda,cpu"])
def test_processes_with_an_accelerator_do_not_restart(platforms):
    assert _run("train", JAX_PLATFORMS=platforms).startswith("None")


def test_the_switch_turns_the_restart_off():
    assert _run("train", JAX_PLATFORMS="cpu", **{SWITCH: "default"}) == "None False train\n"


def test_training_and_evaluation_prepare_jax(monkeypatch, tmp_path):
    """Nothing else does: other commands, also prediction in several processes, keep JAX's asynchronous dispatch.

    Joining processes creates JAX's backend.
    """
    calls = []
    monkeypatch.setattr(malloc, "prepare_jax", lambda: calls.append(command[0]))
    monkeypatch.setattr(launch, "join_processes", lambda args, config, **_: calls.append("join"))
    for command in (
        ["train", "--config", "quickstart:batch=4", "--workdir", str(tmp_path / "run")],
        ["evaluate", "--workdir", str(tmp_path / "none")],
        ["predict", str(tmp_path / "none.png"), "--output", str(tmp_path / "out")],
        ["summary", "--config", "quickstart:size=32"],
    ):
        with pytest.raises(SystemExit):
            main.main(command)
    assert calls == ["train", "join", "evaluate", "join", "join"]


@pytest.mark.parametrize(("tunables", "asynchronous"), [(TUNABLES, False), ("", True)])
def test_a_tuned_process_computes_in_the_calling_thread(tunables, asynchronous):
    program = (
        "import jax\nfrom deeplab_jax.cli import malloc\nmalloc.prepare_jax()\n"
        "print(jax.config.values['jax_cpu_enable_async_dispatch'])"
    )
    environment = os.environ | {VARIABLE: tunables, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{asynchronous}\n"


@pytest.mark.parametrize("value", ["", "glibc.malloc.check=0"])
def test_tunables_of_the_user_are_kept(value):
    assert _run("train", JAX_PLATFORMS="cpu", **{VARIABLE: value}).startswith(f"{value} False")


def test_glibc_accepts_the_tunables():
    """It ignores unknown tunables, so the test reads its list."""
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


def test_the_documentation_shows_the_tunables_and_the_switch():
    """`prepare_jax` does nothing with other tunables."""
    page = pathlib.Path(__file__).parents[2] / "docs" / "performance.md"
    assert f"export {VARIABLE}={TUNABLES}\n" in page.read_text()
    assert f"{SWITCH}=default" in page.read_text()


# A step with hundreds of MB of temporaries, whose argument is copied to the device first, as a batch is.
_STEPS = """
import json, resource
import numpy as np
from deeplab_jax.cli import malloc
malloc.prepare_jax()
import jax
import jax.numpy as jnp
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.config import base_config

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

@jax.jit
def step(images):
    rows = images.reshape(-1, 16)[:6144]
    return (rows @ rows.T) @ rows

mesh = mesh_lib.make_mesh(base_config().mesh)
images = np.ones((1, 1024, 1024, 4), np.float32)
rows = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF)
    step(sharding.to_global({"image": images}, mesh)["image"]).block_until_ready()
    rows.append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before.ru_minflt, resident()))
print(json.dumps([step.lower(images).compile().memory_analysis().temp_size_in_bytes, rows]))
"""


def _rows_of_steps() -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Returns the bytes of a step's temporaries, and each step's page faults and resident bytes after it."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment = kept | {VARIABLE: TUNABLES, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", _STEPS], env=environment, capture_output=True, text=True, check=True)
    temporaries, rows = json.loads(done.stdout)
    assert temporaries >= 96 * 2**20
    faults, resident = zip(*rows, strict=True)
    return temporaries, faults, resident


def _reuses_memory() -> bool:
    """Whether the steps of a new process neither fault in new pages nor grow it."""
    temporaries, faults, resident = _rows_of_steps()
    print(temporaries, faults, resident)
    # Without reuse, each step takes one page fault per 2 MiB with huge pages, or one per 4 KiB.
    keeps_pages = statistics.median(faults[2:]) < temporaries / 2**22
    return keeps_pages and max(resident[2:]) < resident[1] + temporaries / 2


def test_a_step_reuses_the_memory_of_the_previous_step():
    # A small block that another thread allocates at the wrong moment splits the free memory, and steps of that process
    # take new memory: one of them in one process of five, all of them in a rare one. Where results are ready too early
    # or memory goes back to the system, every process does.
    assert any(_reuses_memory() for _ in range(12))


# What compiling leaves: small allocations in use between free ones, which keep the free ones from the system.
_COMPILES = """
import resource, sys
from deeplab_jax.cli import malloc
malloc._LONG = float(sys.argv[1])
malloc.prepare_jax()
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


@pytest.mark.parametrize(("long", "returned"), [(0, True), (3600, False)])
def test_memory_of_long_compilations_is_returned(long, returned):
    environment = os.environ | {VARIABLE: TUNABLES, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _COMPILES, str(long)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # Of 300 MB; compiling allocates some itself.
    assert (int(done.stdout) > 150e6) == returned
