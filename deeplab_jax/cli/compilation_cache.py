"""The caches of compiled programs between runs of the command."""

import os
import pathlib


def enable() -> None:
    """Keeps compiled programs on disk, so that a config starts much faster the second time.

    JAX_COMPILATION_CACHE_DIR names another folder; set to an empty string, it turns the cache off. The folder holds
    JAX's cache, and in `programs` that of `deeplab_jax.program_cache`. Networks that were exported for another runtime
    follow the same rule, see `storage.local_copies.program_folder`.
    """
    import jax

    from deeplab_jax import program_cache
    from deeplab_jax.storage.local_copies import program_folder

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.fspath(program_folder("xla")))
    folder = jax.config.jax_compilation_cache_dir
    if folder and "://" not in folder:  # JAX can keep its cache in a bucket
        program_cache.enable(pathlib.Path(folder) / "programs")
