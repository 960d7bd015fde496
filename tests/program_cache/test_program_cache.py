"""Compiled programs on disk: when they are found, and everything that must keep them from being found."""

import os
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import program_cache
from deeplab_jax.program_cache import Program, environment, store

X, Y = np.arange(4, dtype=np.float32), np.full(4, 7, np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv(program_cache.SWITCH, raising=False)
    program_cache.enable(tmp_path / "programs")
    yield tmp_path / "programs"
    program_cache.disable()


class Function:
    """A function that counts how often it is traced."""

    def __init__(self, function=lambda x: jnp.sin(x) * 2):
        self._function, self.traces = function, 0

    def __call__(self, *arguments):
        self.traces += 1
        return self._function(*arguments)


def call(function, *arguments, key=("key",), **options):
    """Calls a function as a new process would: with a new program."""
    return Program(jax.jit(function), key, jax.devices()[:1], **options)(*arguments)


def traces(*arguments, key=("key",), **options):
    """Returns how often a function is traced that an earlier call may have compiled, and checks its result."""
    function = Function()
    np.testing.assert_array_equal(call(function, *arguments, key=key, **options), jnp.sin(arguments[0]) * 2)
    return function.traces


def executables(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the entries with machine code; the others only name one."""
    return [path for path in folder.glob("*.program") if b"\x7fELF" in path.read_bytes()]


def test_the_second_program_is_neither_traced_nor_compiled(folder):
    assert [traces(X), traces(X)] == [1, 0]


def test_a_program_is_traced_once_for_each_shape(folder):
    function = Function()
    program = Program(jax.jit(function), ("key",), jax.devices()[:1])
    for x in (X, X[:2], X, X[:2]):
        np.testing.assert_array_equal(program(x), jnp.sin(x) * 2)
    assert function.traces == 2
    assert [traces(X), traces(X[:2])] == [0, 0]


def test_static_arguments_are_part_of_the_program(folder):
    jitted = jax.jit(lambda x, *, factor: x * factor, static_argnames="factor")
    for _ in range(2):
        program = Program(jitted, ["key"], jax.devices()[:1])
        assert [program(X, factor=factor)[1] for factor in (2, 3, 2)] == [2, 3, 2]


def test_without_the_cache_programs_are_jitted(tmp_path):
    assert [traces(X), traces(X)] == [1, 1]


def test_the_variable_turns_the_cache_off(tmp_path, monkeypatch):
    monkeypatch.setenv(program_cache.SWITCH, "off")
    program_cache.enable(tmp_path)
    assert [traces(X), traces(X)] == [1, 1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["key", "argument", "variable", "option", "source", "processor", "package"])
def test_whatever_differs_is_another_program(folder, monkeypatch, change):
    assert traces(X) == 1
    key, x = ["key"], X
    if change == "key":
        key = ["another key"]
    elif change == "argument":
        x = X.astype(np.int32)
    elif change == "variable":
        monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " ")
    elif change == "source":
        monkeypatch.setattr(environment, "_own_sources", lambda: "other sources")
    elif change == "processor":
        monkeypatch.setattr(environment, "_processor", lambda: "another processor")
    elif change == "package":
        monkeypatch.setattr(environment, "_installed_packages", lambda folders: ["jax-99.dist-info"])
    if change == "option":
        with jax.default_matmul_precision("highest"):
            assert traces(x, key=key) == 1
    else:
        assert traces(x, key=key) == 1
    assert traces(X) == (1 if change not in ("key", "argument", "option") else 0)


def test_the_source_of_a_loaded_script_is_part_of_every_program(folder, tmp_path, monkeypatch):
    """A config file can replace any part of the package."""
    (tmp_path / "a_config.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import a_config

    assert [traces(X), traces(X)] == [1, 0]
    pathlib.Path(a_config.__file__).write_text("x = 2\n")
    assert traces(X) == 1


def test_new_sources_that_make_the_same_program_are_traced_but_not_compiled(folder, monkeypatch):
    assert traces(X) == 1
    before = {path: path.stat().st_mtime_ns for path in executables(folder)}
    monkeypatch.setattr(environment, "_own_sources", lambda: "a comment was added")
    assert traces(X) == 1
    assert {path: len(path.read_bytes()) for path in executables(folder)}.keys() == before.keys()
    assert traces(X) == 0


def test_programs_that_read_different_arguments_are_different(folder):
    """Their text is the same: it leaves out arguments that are not read."""
    np.testing.assert_array_equal(call(lambda x, y: x * 2, X, Y, key=["first"]), X * 2)
    np.testing.assert_array_equal(call(lambda x, y: y * 2, X, Y, key=["second"]), Y * 2)


def test_a_program_that_calls_python_is_not_kept(folder):
    def function(x):
        return jax.pure_callback(lambda value: np.asarray(value) + 1, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    np.testing.assert_array_equal(call(function, X), X + 1)
    assert not folder.exists() or not executables(folder)


@pytest.mark.parametrize("damage", ["cut off", "changed", "empty"])
def test_damaged_entries_are_written_again(folder, damage):
    assert traces(X) == 1
    for path in folder.glob("*.program"):
        content = path.read_bytes()
        damaged = {"cut off": content[:-9], "changed": content[:-9] + b"123456789", "empty": b""}
        path.write_bytes(damaged[damage])
    assert [traces(X), traces(X)] == [1, 0]


def test_an_entry_that_xla_cannot_load_is_written_again(folder):
    assert traces(X) == 1
    (path,) = executables(folder)
    store.Store(folder).write(path.stem, b"not a program")
    assert [traces(X), traces(X)] == [1, 0]


def test_a_folder_that_others_can_write_to_is_not_used(folder):
    """Loading a program runs the code in it."""
    assert traces(X) == 1
    folder.chmod(0o777)
    assert traces(X) == 1
    folder.chmod(0o700)
    assert traces(X) == 0


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    monkeypatch.delenv(program_cache.SWITCH, raising=False)
    (tmp_path / "file").write_text("")
    program_cache.enable(tmp_path / "file" / "programs")
    try:
        assert [traces(X), traces(X)] == [1, 1]
    finally:
        program_cache.disable()


def test_readers_see_all_of_an_entry_or_nothing(tmp_path):
    kept, payloads = store.Store(tmp_path / "programs"), [bytes([i]) * 2**20 for i in range(4)]
    threads = [threading.Thread(target=lambda p=p: [kept.write("name", p) for _ in range(5)]) for p in payloads]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads):
        seen.append(kept.read("name"))
    for thread in threads:
        thread.join()
    assert kept.read("name") in payloads
    assert all(content is None or content in payloads for content in seen)
    assert [path.suffix for path in (tmp_path / "programs").iterdir()] == [".program"]


def test_the_entries_that_were_not_used_longest_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LARGEST", 400)
    kept = store.Store(tmp_path / "programs")
    for i, name in enumerate(("a", "b", "c")):
        kept.write(name, bytes(100))
        os.utime(tmp_path / "programs" / f"{name}.program", (i, i))
    kept.read("a")
    kept.write("d", bytes(100))
    assert {path.stem for path in (tmp_path / "programs").iterdir()} == {"a", "c", "d"}


def test_a_program_in_the_cache_of_jax_is_compiled_for_this_one(folder, compilation_cache):
    """One that JAX loads from its cache cannot be written again."""

    def function(x):
        return jnp.tanh(x).sum() + jnp.max(x)

    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        expected = jax.jit(function)(X)
        assert call(function, X) == expected
        assert len(executables(folder)) == 1
        assert call(function, X) == expected
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def test_values_are_computed_once(folder):
    calls = []
    for _ in range(2):
        assert program_cache.load_or_compute(lambda: calls.append(1) or {"a": (1, 2)}, ["shapes"]) == {"a": (1, 2)}
    assert len(calls) == 1
