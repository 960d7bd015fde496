"""Memory of the host, where the network runs on the processor: in large pages, and kept from step to step.

XLA:CPU asks malloc for a step's temporaries, gigabytes of them, and frees them behind it. Left alone, glibc hands such
blocks back to the system, and the next step faults them in again, 4 KiB at a time. Here they come in pages of 2 MiB and
stay with the process, so that the next step finds them. glibc reads this once, as a process begins.

JAX tells that a step's results are ready while a thread of its own still frees the temporaries. The next step would not
find them, and a process that keeps its memory would need twice of it. So the thread that calls does the computing.

Compiling takes hundreds of MB in small pieces, between which no step's temporaries find room. They are given back.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"

# Pages of 2 MiB; no block is the system's own mapping, which it would take back when freed; nothing is given back.
TUNABLES = f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={2**40}"

_COMPILED = "/jax/core/compile/backend_compile_duration"  # the event of `jax.monitoring`
_LONG = 0.5  # seconds: what less leaves behind is small, and a program that kept its memory would fault it in again


def keep_memory() -> None:
    """Starts this process over with the settings, if it has not got them and they would help; else does nothing.

    They would help with glibc and without an accelerator. A GLIBC_TUNABLES that is set, if only to nothing, is left
    alone.
    """
    if VARIABLE not in os.environ and platform.libc_ver()[0] == "glibc" and _runs_on_cpu():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {VARIABLE: TUNABLES})


@functools.cache
def prepare_jax() -> None:
    """If this process keeps its memory, JAX computes in the thread that calls, and gives back what compiling took.

    To be called before anything is computed.
    """
    if os.environ.get(VARIABLE) == TUNABLES:
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)
        jax.monitoring.register_event_duration_secs_listener(_give_back)


def _give_back(event: str, seconds: float, **kwargs: str | int) -> None:
    """Gives free pages back to the system behind a compilation, before what it compiled runs."""
    if event == _COMPILED and seconds >= _LONG:
        ctypes.CDLL(None).malloc_trim(0)


def _runs_on_cpu() -> bool:
    """Whether JAX will find nothing but the processor; to import it would be too late."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None
