"""Compiled programs on disk: a start that finds its programs there neither traces nor compiles them.

JAX's own compilation cache spares the compilation alone, since its key is the traced and lowered program. The key here
is what a program is made from: the config, the arguments, the sources of the package, the versions of all installed
packages, the environment and the processor (`environment`). It works for programs on the CPU in one process; all other
programs are left to JAX's cache.
"""

from deeplab_jax.program_cache.program import Program, load_or_compute
from deeplab_jax.program_cache.store import SWITCH, disable, enable

__all__ = ["SWITCH", "Program", "disable", "enable", "load_or_compute"]
