"""Large pages of memory, where the network runs on the processor.

XLA:CPU asks malloc for a step's temporaries, gigabytes of them, and frees them behind it. glibc hands such blocks back
to the system, and the next step faults them in again, 4 KiB at a time: a step of the KerasCV guide's network (512x512,
batch 4, two cores) took 15.2 s so, and 13.3 s in pages of 2 MiB. glibc reads the setting once, as a process begins.

To keep the memory instead (`mmap_max=0`, `arena_max=1` and a high `trim_threshold`) took 11.5 s, but what is allocated
behind the temporaries may keep the next step from fitting in their place: then the process needs twice the memory.
"""

import importlib.metadata
import importlib.util
import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"

TUNABLES = "glibc.malloc.hugetlb=1"


def use_large_pages() -> None:
    """Starts this process over with the setting, if it has not got it and it would help; else does nothing.

    It would help with glibc and without an accelerator. A GLIBC_TUNABLES that is set, if only to nothing, is left
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
