"""The cache of compiled programs between runs of the command."""

import os
import pathlib


def enable() -> None:
    """Keeps compiled programs on disk, so that a config starts much faster the second time.

    JAX_COMPILATION_CACHE_DIR names another folder; set to an empty string, it turns the cache off.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", os.fspath(cache / "deeplab_jax" / "xla"))
