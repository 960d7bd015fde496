"""Everything that a compiled program depends on, apart from its config and its arguments."""

import functools
import hashlib
import importlib.machinery
import os
import pathlib
import platform
import sys
import sysconfig
from collections.abc import Sequence

import jax

#: Start of the lines that describe source code.
SOURCES = "sources "

_PACKAGE = pathlib.Path(__file__).parents[1]

# Variables that change how programs are traced, lowered, compiled or run. `_IGNORED` only say where caches are.
_PREFIXES = ("DEEPLAB_JAX_", "JAX_", "XLA_", "TF_", "OMP_", "LIBTPU_")
_IGNORED = ("JAX_COMPILATION_CACHE_DIR", "DEEPLAB_JAX_DATA", "DEEPLAB_JAX_PROGRAM_CACHE")
_IGNORED_OPTIONS = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")


def describe_environment(devices: Sequence[jax.Device]) -> list[str]:
    """Returns one line per fact; programs of different lines are different programs.

    Args:
      devices: the devices that run the program.
    """
    values = jax.config.values  # not those inside `with`, which the attributes know, but not every option has one
    options = {name: getattr(jax.config, name, values[name]) for name in values if name not in _IGNORED_OPTIONS}
    variables = {
        name: value for name, value in os.environ.items() if name.startswith(_PREFIXES) and name not in _IGNORED
    }
    return [
        f"{SOURCES}of the package: {_own_sources()}",
        f"{SOURCES}of others: {_loaded_sources()}",
        f"packages {_installed_packages(tuple(sys.path))}",
        f"python {sys.version} {platform.machine()}",
        f"processor {_processor()}",
        f"cores {os.cpu_count()} {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else ''}",
        f"devices {[(device.id, device.device_kind) for device in devices]} of {len(jax.devices())}",
        f"backend {devices[0].client.platform} {devices[0].client.platform_version}",
        f"options {sorted(options.items())}",
        f"variables {sorted(variables.items())}",
    ]


@functools.cache
def _own_sources() -> str:
    return _digest_files(sorted(_PACKAGE.rglob("*.py")))


def _loaded_sources() -> str:
    """Returns the digest of all loaded modules that are not part of an installed package: configs, scripts, plugins.

    They can register or replace parts of the package. Installed packages are known by their versions.
    """
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    installed = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    sources = tuple(importlib.machinery.SOURCE_SUFFIXES)
    return _digest_files(
        [
            pathlib.Path(file)
            for file in sorted(file for file in files if file and file.endswith(sources))
            if not file.startswith((*installed, str(_PACKAGE))) and os.path.isfile(file)
        ]
    )


@functools.cache
def _installed_packages(folders: tuple[str, ...]) -> list[str]:
    """Returns the name and version of each installed package, as the names of their folders of metadata have them."""
    names = {
        name
        for folder in folders
        if os.path.isdir(folder)
        for name in os.listdir(folder)
        if name.endswith((".dist-info", ".egg-info"))
    }
    return sorted(names)


@functools.cache
def _processor() -> str:
    """Returns the model and the instruction sets. Code compiled for one processor may not run on another."""
    file = pathlib.Path("/proc/cpuinfo")
    if not file.is_file():
        return f"{platform.processor()} {platform.release()}"
    lines = file.read_text().splitlines()
    kept = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part", "stepping"))}
    return " ".join(sorted(kept))


def _digest_files(files: Sequence[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
