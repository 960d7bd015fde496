"""Tuned malloc for training and evaluation on the CPU: huge pages, kept from step to step.

XLA:CPU allocates the temporaries of each step, gigabytes of them, with malloc and frees them after the step. By
default glibc returns such blocks to the system, and the next step faults them in again, 4 KiB at a time. With
`TUNABLES` they are allocated in pages of 2 MiB and stay with the process, where the next step finds them. glibc reads
these settings once, when a process starts, so the command has to start itself again.

JAX reports the results of a step as ready while one of its threads still frees the temporaries. The next step would not
find them, and the process would keep twice the memory. So `prepare_jax` makes the calling thread do the computing.

Compiling allocates hundreds of MB in small pieces, and the gaps between them hold no temporaries. `prepare_jax` returns
that memory to the system after each long compilation.
"""

import functools
import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"

# Pages of 2 MiB; no separate mappings, which glibc would unmap when freed; never return memory to the system.
TUNABLES = f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={2**40}"

#: Environment variable that turns the tuning off if it is `default`.
SWITCH = "DEEPLAB_JAX_MALLOC"

#: The commands that restart themselves.
COMMANDS = ("train", "sweep", "evaluate")

#: What `--help` of these commands says.
NOTE = (
    "On Linux machines without an accelerator, this command restarts itself once with malloc settings that keep memory "
    f"between steps ({VARIABLE}). Set {SWITCH}=default to turn this off."
)

_COMPILED = "/jax/core/compile/backend_compile_duration"  # an event of `jax.monitoring`
_LONG = 0.5  # seconds; shorter compilations leave little memory behind, which is cheaper to keep


def restart_tuned() -> None:
    """Replaces this process by the same command with `TUNABLES`, where they help; otherwise does nothing.

    They help with glibc if JAX will use the CPU. Does nothing if GLIBC_TUNABLES is set, even to an empty string, or if
    DEEPLAB_JAX_MALLOC is `default`.
    """
    if VARIABLE in os.environ or os.environ.get(SWITCH) == "default":
        return
    if platform.libc_ver()[0] == "glibc" and _runs_on_cpu():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {VARIABLE: TUNABLES})


@functools.cache
def prepare_jax() -> None:
    """Configures JAX for a process that runs with `TUNABLES`; does nothing in other processes.

    Call this before anything is computed.
    """
    if os.environ.get(VARIABLE) == TUNABLES:
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)
        jax.monitoring.register_event_duration_secs_listener(_trim_after_compilation)


def _trim_after_compilation(event: str, seconds: float, **kwargs: str | int) -> None:
    """Returns free memory to the system after a compilation and before the compiled program runs."""
    if event == _COMPILED and seconds >= _LONG:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)


def _runs_on_cpu() -> bool:
    """True if JAX will find no accelerator. Importing JAX to ask it would take too long."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    import importlib.metadata  # slow, and `--help` does not need it
    import importlib.util

    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None
