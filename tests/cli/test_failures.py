"""Exceptions that nobody raised on purpose: one line, and a file with the traceback if the cause is not known."""

import errno
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from deeplab_jax.cli import failures, main


@pytest.fixture
def broken(run, monkeypatch):
    """Runs a command that raises an exception."""

    def run_broken(error: BaseException, *arguments: str):
        def run_command(*_):
            raise error

        monkeypatch.setattr(main, "run_command", run_command)
        return run(*(arguments or ("presets",)))

    return run_broken


def test_a_bug_is_one_line_that_names_the_file_with_the_traceback(broken, temporary_folder):
    code, out, err = broken(KeyError("a\nbug"), "presets", "--json")
    (file,) = temporary_folder.iterdir()
    assert (code, out) == (1, "")
    assert err == [
        f"deeplab-jax: unexpected error, please report it with {file}, which holds the traceback: KeyError: 'a\\nbug'"
    ]
    text = file.read_text()
    assert text.endswith("KeyError: 'a\\nbug'\n")
    assert "Traceback (most recent call last)" in text
    assert "deeplab-jax presets --json\n" in text
    assert f"jax {jax.__version__}" in text
    assert file.stat().st_mode & 0o077 == 0


def test_a_traceback_that_cannot_be_saved_is_printed(broken, temporary_folder):
    temporary_folder.rmdir()
    code, _, err = broken(KeyError("a bug"))
    assert code == 1
    assert err[0] == "Traceback (most recent call last):"
    assert err[-1] == ("deeplab-jax: unexpected error, please report it with the traceback above: KeyError: 'a bug'")


def test_debug_prints_the_traceback(broken, temporary_folder):
    err = broken(KeyError("a bug"), "presets", "--debug").err
    assert err[0] == "Traceback (most recent call last):"
    assert err[-1].startswith("deeplab-jax: unexpected error")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "w/lock"),
            "cannot access w/lock: Permission denied;",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "cannot read or write a file: No space left on device;",
        ),
        (OSError(errno.EROFS, "Read-only file system", "w"), "cannot access w: Read-only file system; choose a folder"),
        (
            RuntimeError("Unable to initialize backend 'cuda': INTERNAL: no supported devices found"),
            "JAX cannot use the platform of JAX_PLATFORMS=cpu: this machine has no such device, or JAX was installed",
        ),
    ],
)
def test_a_known_cause_is_one_line_with_the_fix(broken, temporary_folder, error, message):
    code, out, err = broken(error)
    assert (code, out, len(err)) == (1, "", 1)
    assert err[0].startswith(f"deeplab-jax: {message}")
    assert list(temporary_folder.iterdir()) == []


OUT_OF_MEMORY = [
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 36864000000 bytes."),
    np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype(np.float32)),
    MemoryError(),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (("train", "--config", "quickstart", "--workdir", "w"), "reduce data.batch_size, raise train.accumulate_steps"),
        (("evaluate", "--workdir", "w"), "reduce eval.batch_size"),
        (("predict", "a.png", "--output", "o"), "use a smaller --size or smaller --scales, or slide a window"),
        (("export", "--to", "onnx", "--output", "o"), "use a smaller --size or --batch"),
        (("benchmark-latency",), "use smaller --sizes or --batches"),
        (("presets",), "use less data"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_out_of_memory_names_what_to_make_smaller(broken, temporary_folder, error, arguments, fix):
    code, out, err = broken(error, *arguments)
    assert (code, out, len(err)) == (1, "", 1)
    assert err[0].startswith("deeplab-jax: out of memory")
    assert f"; {fix}" in err[0]
    assert list(temporary_folder.iterdir()) == []


def test_out_of_memory_names_the_size_that_was_asked_for():
    assert "while allocating 34.3 GiB; " in failures._explain(OUT_OF_MEMORY[0], None)
    assert "while allocating 4.00 TiB; " in failures._explain(OUT_OF_MEMORY[1], None)


def test_a_full_disk_is_not_out_of_memory(broken, temporary_folder):
    # TensorStore reports it with the same word as XLA reports a lack of memory.
    err = broken(ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")).err
    assert "out of memory" not in err[0]


def test_a_broken_pipe_that_is_not_standard_output_is_reported(broken, temporary_folder):
    code, _, err = broken(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert code == 1
    assert "BrokenPipeError" in err[0]


# ---- Processes: what this machine does ----


def run_process(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "deeplab_jax", *arguments],
        stderr=subprocess.PIPE, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["presets"], ["presets", "--json"]], ids=["table", "json"])
def test_output_that_cannot_be_written_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        done = run_process(*arguments, stdout=full)
    assert (done.returncode, done.stderr) == (
        1, "deeplab-jax: cannot write to standard output: No space left on device; free some space or choose another "
        "disk\n",
    )  # fmt: skip


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_is_one_line(platform):
    environment = os.environ | {"JAX_PLATFORMS": platform}
    done = run_process("summary", "--config", "quickstart", "--mesh", stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(
        f"deeplab-jax: JAX cannot use the platform of JAX_PLATFORMS={platform}: this machine has no such device"
    )
    assert "Traceback" not in done.stderr


def test_text_that_the_terminal_cannot_show_is_escaped():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run_process("configs", stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(run_process("configs", "--json", stdout=subprocess.PIPE, env=environment).stdout)
