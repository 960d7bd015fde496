"""Jitted functions whose compiled form is kept on disk."""

import contextlib
import hashlib
import logging
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from deeplab_jax.program_cache import store
from deeplab_jax.program_cache.environment import SOURCES, describe_environment

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_CACHE_HIT = "/jax/compilation_cache/cache_hits"  # an event of `jax.monitoring`
_hits = threading.local()
_compiling = threading.Lock()


class Program:
    """A jitted function. Its compiled form comes from the disk if the cache is enabled, and is kept there.

    Args:
      jitted: the function.
      key: everything that `jitted` was made from, apart from what `environment` describes. Functions of equal keys and
        arguments must be the same.
      devices: the devices that it runs on.
      fixed: number of leading arguments whose shapes are the same in every call.
      arguments: shapes of all arguments; default: those of the call or of `prepare`.
      compiler_options: those of `jitted`.

    Attributes:
      jitted: the function.
    """

    def __init__(
        self,
        jitted: jax.stages.Wrapped,
        key: Sequence[Any],
        devices: Sequence[jax.Device],
        *,
        fixed: int = 0,
        arguments: Sequence[Any] = (),
        compiler_options: Mapping[str, Any] | None = None,
    ):
        self.jitted, self._devices, self._fixed = jitted, tuple(devices), fixed
        self._key, self._arguments, self._options = key, tuple(arguments), dict(compiler_options or {})
        self._compiled: dict[Any, Callable] = {}

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        """Calls the function. `static` are the arguments that `jax.jit` was told are static."""
        if not _is_kept(self._devices):
            return self.jitted(*arguments, **static)
        call = self._compiled.get(self._signature(arguments, static))
        return (call or self.prepare(*arguments, **static))(*arguments)

    def prepare(self, *arguments: Any, **static: Any) -> Callable:
        """Loads or compiles the function for arguments, which may be shapes, and returns the compiled function."""
        arguments = self._arguments or arguments
        if not _is_kept(self._devices):
            lowered = self.jitted.lower(*arguments, **static)
            with _compiling:  # two compilations at the same time would take the memory of both
                return lowered.compile()
        signature = self._signature(arguments, static)
        if signature not in self._compiled:
            facts = [self._options, _describe(arguments), sorted(static.items())]
            name = _digest("program", describe_environment(self._devices), self._key, facts)
            compiled = _load(name, self._devices)
            if compiled is None:
                compiled = _compile(name, self.jitted.lower(*arguments, **static), self._devices, facts)
            self._compiled[signature] = compiled
        return self._compiled[signature]

    def _signature(self, arguments: Sequence[Any], static: dict[str, Any]) -> Any:
        leaves, tree = jax.tree.flatten(arguments[self._fixed :])
        return tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves), tuple(sorted(static.items()))


def load_or_compute(compute: Callable[[], _T], key: Sequence[Any], devices: Sequence[jax.Device] | None = None) -> _T:
    """Returns what a function computed in this or an earlier process, such as the shapes that tracing found.

    Args:
      compute: the function; its result can be pickled.
      key: see `Program`.
      devices: the devices that the result depends on (default: those of this process).
    """
    kept = store.active()
    if kept is None:
        return compute()
    devices = jax.local_devices() if devices is None else devices
    if not _is_kept(devices):
        return compute()
    name = _digest("value", describe_environment(devices), key)
    content = kept.read(name)
    if content is not None:
        return pickle.loads(content)
    value = compute()
    kept.write(name, pickle.dumps(value))
    return value


def _is_kept(devices: Sequence[jax.Device]) -> bool:
    return store.active() is not None and devices[0].platform == "cpu" and jax.process_count() == 1


def _load(name: str, devices: Sequence[jax.Device]) -> Callable | None:
    kept = store.active()
    entry = kept.read(name)
    if entry is None:
        return None
    executable, in_tree, out_tree = pickle.loads(entry)
    content = kept.read(executable)
    return None if content is None else _deserialize(executable, content, in_tree, out_tree, devices)


def _compile(name: str, lowered: jax.stages.Lowered, devices: Sequence[jax.Device], facts: Sequence[Any]) -> Callable:
    """Compiles a program and keeps it, unless it is kept under another key: sources change more than programs do."""
    kept, text = store.active(), lowered.as_text()
    if "callback" in text:  # its code would contain an address of this process
        with _compiling:
            return lowered.compile()
    executable = _digest("executable", _without_sources(lowered, describe_environment(devices)), facts, text)
    content = kept.read(executable)
    if content is not None:
        loaded = _deserialize(executable, content, lowered.in_tree, lowered.out_tree, devices)
        if loaded is not None:
            kept.write(name, pickle.dumps((executable, lowered.in_tree, lowered.out_tree)))
            return loaded
    with _compiling, _without_jax_cache():
        compiled = lowered.compile()
        is_new = _hits.count == 0
    if not is_new:  # JAX loaded it, and written again it would lack its machine code
        return compiled
    try:
        content, in_tree, out_tree = serialize_executable.serialize(compiled)
        entry = pickle.dumps((executable, in_tree, out_tree))
    except (NotImplementedError, ValueError, TypeError, pickle.PicklingError) as error:
        logger.debug("a program is not kept: %s", error)
    else:
        kept.write(executable, content)
        kept.write(name, entry)
    return compiled


def _without_sources(lowered: jax.stages.Lowered, environment: Sequence[str]) -> list[str]:
    """Returns the facts that a lowered program depends on in addition to its text.

    These are not the sources, of which the text is the result. The text leaves out arguments that the program does not
    read, so their positions are a fact of their own. Where JAX does not tell them, the sources stay.
    """
    arguments = getattr(getattr(lowered, "_lowering", None), "compile_args", {})
    if "kept_var_idx" not in arguments:
        return list(environment)
    facts = [line for line in environment if not line.startswith(SOURCES)]
    return [*facts, str(sorted(arguments["kept_var_idx"])), str(lowered.in_tree), str(lowered.out_tree)]


def _deserialize(
    executable: str, content: bytes, in_tree: Any, out_tree: Any, devices: Sequence[jax.Device]
) -> Callable | None:
    try:
        return serialize_executable.deserialize_and_load(
            content, in_tree, out_tree, backend=devices[0].client, execution_devices=list(devices)
        )
    except Exception as error:  # any error of XLA or pickle: then the program is compiled again
        logger.debug("a program on disk cannot be loaded: %s", error)
        store.active().remove(executable)
        return None


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
    """Makes JAX compile a program rather than load it from its own cache. Counts what it loads nevertheless."""
    _listen()
    before, _hits.count = jax.config.jax_enable_compilation_cache, 0
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX decides once whether it uses the cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


_listens = False


def _listen() -> None:
    global _listens
    if not _listens:
        _listens = True
        jax.monitoring.register_event_listener(_count_hit)


def _count_hit(event: str, **kwargs: str | int) -> None:
    if event == _CACHE_HIT:
        _hits.count = getattr(_hits, "count", 0) + 1


def _describe(arguments: Any) -> list[str]:
    """Describes the tree and each leaf of a function's arguments: shape, dtype, weak type, and where it is."""
    leaves, tree = jax.tree.flatten(arguments)
    lines = [str(tree)]
    for leaf in leaves:
        aval = jax.typeof(leaf) if not isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        weak, place = getattr(aval, "weak_type", False), getattr(leaf, "sharding", None)
        lines.append(f"{aval.shape} {aval.dtype} {weak} {place} {getattr(leaf, 'committed', None)}")
    return lines


def _digest(*parts: Any) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
