"""Keeps the memory that a step frees for the next step, where the network runs on the processor.

XLA:CPU asks malloc for a step's temporaries, gigabytes of them, and frees them behind it. glibc hands such blocks back
to the system and the next step faults them in again, page by page, which takes a quarter of a train step. The settings
here keep freed memory and use pages of 2 MiB. glibc reads them once, as a process begins.
"""

import importlib.metadata
import importlib.util
import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"

# One arena, without blocks mapped on their own, so that what is freed joins up again; it never shrinks.
TUNABLES = ":".join(
    (
        "glibc.malloc.arena_max=1",
        "glibc.malloc.mmap_max=0",
        f"glibc.malloc.trim_threshold={2**40}",
        "glibc.malloc.hugetlb=1",
    )
)


def keep_freed_memory() -> None:
    """Starts this process over with the settings, if it has not got them and they would help; else does nothing.

    They would help with glibc and without an accelerator. A GLIBC_TUNABLES that is set, if only to nothing, is left
    alone.
    """
    if VARIABLE not in os.environ and platform.libc_ver()[0] == "glibc" and _runs_on_cpu():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {VARIABLE: TUNABLES})


def _runs_on_cpu() -> bool:
    """Whether JAX will find nothing but the processor; to import it would be too late."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None
