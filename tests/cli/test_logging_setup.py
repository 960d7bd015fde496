"""Messages of the package on stderr and in a file."""

import io
import logging
import re

import pytest
from rich.console import Console

from deeplab_jax import progress
from deeplab_jax.cli import exits, launch, logging_setup, main
from deeplab_jax.cli.logging_setup import CommandLogging
from deeplab_jax.errors import UserError
from deeplab_jax.parallel import processes

logger = logging.getLogger("deeplab_jax.training.loop")


@pytest.fixture
def messages(monkeypatch):
    """Replaces every command by one that logs."""

    def log(*_):
        logger.debug("a detail")
        logger.info("Continuing runs/[bold]x[/bold] from step %d of %d", 3, 9)
        logger.warning("%s", "a " + "long " * 40 + "warning")

    monkeypatch.setattr(main, "run_command", log)


LONG = "a " + "long " * 40 + "warning"


def test_messages_are_plain_lines_and_warnings_are_marked(run, messages):
    code, out, err = run("presets")
    assert (code, out) == (0, "")
    assert err == ["Continuing runs/[bold]x[/bold] from step 3 of 9", f"warning: {LONG}"]


def test_warnings_are_styled_on_a_terminal(messages, monkeypatch):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="standard", width=40)
    monkeypatch.setattr(logging_setup, "console", lambda: console)
    with pytest.raises(SystemExit):
        main.main(["presets"])
    info, warning = file.getvalue().splitlines()
    assert info == "Continuing runs/[bold]x[/bold] from step 3 of 9"  # not wrapped, not markup
    assert warning == f"\x1b[33mwarning: {LONG}\x1b[0m"


def test_quiet_prints_errors_only(run, messages, monkeypatch):
    assert run("presets", "--quiet").err == []

    def fail(*_):
        raise UserError("the disk is\nfull")

    monkeypatch.setattr(main, "run_command", fail)
    assert run("presets", "--quiet") == (1, "", ["deeplab-jax: the disk is full"])


def test_a_log_file_gets_every_message_with_its_time(run, messages, tmp_path):
    file = tmp_path / "log.txt"
    file.write_text("before\n")
    assert run("presets", "--quiet", "--log-file", file).code == 0
    before, info, warning = file.read_text().splitlines()
    assert before == "before"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d .* INFO Continuing runs/\[bold\]x\[/bold\] from step 3 of 9", info)
    assert warning.endswith(f" WARNING {LONG}")


def test_a_log_file_gets_errors_and_tracebacks(run, tmp_path, monkeypatch, temporary_folder):
    file = tmp_path / "log.txt"

    def fail(error: Exception):
        def run_command(*_):
            raise error

        monkeypatch.setattr(main, "run_command", run_command)

    fail(UserError("the disk is full"))
    assert run("presets", "--log-file", file).code == 1
    assert file.read_text().endswith("ERROR the disk is full\n")
    fail(ZeroDivisionError("a bug"))
    code, _, err = run("presets", "--log-file", file)
    assert (code, len(err)) == (1, 1)
    assert "ZeroDivisionError: a bug\nTraceback" in file.read_text()
    assert file.read_text().endswith("\nZeroDivisionError: a bug\n")


def test_a_log_file_gets_the_lines_that_a_bar_shows(tmp_path, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(logging_setup, "console", lambda: console)
    file = tmp_path / "log.txt"

    def train(*_):
        with progress.bar("train", 2) as shown:
            logger.info("step 1/2  loss %.1f", 0.5, extra=shown.log_extra)
        logger.info("done", extra=progress.Bar(None, None).log_extra)

    monkeypatch.setattr(main, "run_command", train)
    with pytest.raises(SystemExit):
        main.main(["presets", "--log-file", str(file)])
    assert "loss" not in screen.getvalue()
    assert "done" in screen.getvalue()
    assert [line.partition(" INFO ")[2] for line in file.read_text().splitlines()] == ["step 1/2  loss 0.5", "done"]


def test_names_cannot_act_on_the_terminal_or_forge_lines_of_the_log(run, tmp_path, monkeypatch):
    def log(*_):
        logger.warning("left out %s", "a\x1b[2J\nb [red]\u202e.png")

    monkeypatch.setattr(main, "run_command", log)
    shown = r"left out a\x1b[2J\nb [red]\u202e.png"
    assert run("presets", "--log-file", tmp_path / "log").err == [f"warning: {shown}"]
    assert (tmp_path / "log").read_text().endswith(f" WARNING {shown}\n")


def test_a_log_file_that_cannot_be_written_is_reported(fails, tmp_path):
    file = tmp_path / "missing" / "log.txt"
    fails("presets", "--log-file", file, message=f"cannot write --log-file {file}: No such file or directory")


def test_logging_is_restored_after_the_command(run, messages):
    package = logging.getLogger("deeplab_jax")
    before = package.handlers[:], package.level, package.propagate
    run("presets")
    assert (package.handlers[:], package.level, package.propagate) == before
    assert progress._console is None


def test_progress_is_shown_unless_quiet():
    with CommandLogging() as log:
        log.configure(quiet=True, log_file=None)
        assert progress._console is None
        log.configure(quiet=False, log_file=None)
        assert progress._console is logging_setup.console()


@pytest.mark.parametrize("leads", [True, False])
def test_only_the_leader_of_a_run_logs(capsys, monkeypatch, tmp_path, leads):
    monkeypatch.setenv(exits.SUPERVISED, "1")
    monkeypatch.setattr(processes, "start", lambda *_, **__: None)
    monkeypatch.setattr(processes, "is_leader", lambda: leads)
    ended = []
    monkeypatch.setattr(exits, "exit_at_once", ended.append)

    def train(command, args):
        from deeplab_jax.config import base_config

        launch.join_processes(args, base_config())
        logger.warning("a warning")
        raise UserError("wrong")

    monkeypatch.setattr(main, "run_command", train)
    arguments = ["--coordinator", "a:1", "--num-processes", "2", "--process-id", "1"]
    with pytest.raises(SystemExit):
        main.main(["train", "--workdir", "w", "--log-file", str(tmp_path / "log"), *arguments])
    assert ended == [1]
    # The launcher shows the errors of a process that failed, whichever it is.
    lines = ["warning: a warning", "deeplab-jax: wrong"] if leads else ["deeplab-jax: wrong"]
    assert capsys.readouterr().err.splitlines() == lines
    assert len((tmp_path / "log").read_text().splitlines()) == (2 if leads else 0)
