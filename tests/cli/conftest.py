"""Running commands in this process."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import pytest

from deeplab_jax.cli import main


class Result(NamedTuple):
    """The exit code of a command, its standard output, and the lines on standard error."""

    code: int
    out: str
    err: list[str]


@pytest.fixture
def run(capsys, compilation_cache) -> Callable[..., Result]:
    """Runs a command."""

    def run_command(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as done:
            main.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Result(done.value.code, printed.out, printed.err.splitlines())

    return run_command


@pytest.fixture
def temporary_folder(tmp_path, monkeypatch) -> pathlib.Path:
    """The folder that the command uses for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def fails(run) -> Callable[..., None]:
    """Asserts that a command prints one line with `message`, and exits with 1."""

    def run_and_check(*arguments: object, message: str) -> None:
        code, out, err = run(*arguments)
        assert (code, out) == (1, ""), err
        assert len(err) == 1, err
        assert err[0].startswith("deeplab-jax: ")
        assert message in err[0]

    return run_and_check
