"""The cache of compiled programs between runs of the command."""

import os


def enable() -> None:
    """Keeps compiled programs on disk, so that a config starts much faster the second time.

    JAX_COMPILATION_CACHE_DIR names another folder; set to an empty string, it turns the cache off. Networks that were
    exported for another runtime follow the same rule, see `storage.local_copies.program_folder`.
    """
    import jax

    from deeplab_jax.storage.local_copies import program_folder

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.fspath(program_folder("xla")))
