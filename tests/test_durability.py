"""A training that is killed or stopped at any moment ends exactly like an uninterrupted one."""

import json
import os
import random
import shutil
import signal
import sys
import time

import pytest

from deeplab_jax.errors import Preempted
from tests.support import runs


@pytest.fixture(scope="module")
def straight(tmp_path_factory, compilation_cache):
    """Ten steps without an interruption, on one device, and the seconds they took once they had begun."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    process = runs.start(workdir)
    runs.wait_for(lambda: runs.has_logged(workdir))
    begin = time.monotonic()
    code, err = runs.finish(process)
    assert code == 0, err
    return workdir, time.monotonic() - begin


def test_an_uninterrupted_run_logs_every_step_once(straight):
    workdir, _ = straight
    assert runs.logged_steps(workdir) == [3, 5, 5, 6, 9, 10, 10]
    assert {path.name for path in (workdir / "checkpoints").iterdir()} >= {"8", "10"}


WORKERS = "--config.data.workers=2"
KILLS = int(os.environ.get("DEEPLAB_JAX_TEST_KILLS", "20"))


def kill_and_finish(workdir, kills, seconds, rng, *arguments):
    """Kills the run `kills` times, in turn while it saves and at any moment, then lets it finish; returns the kills."""
    for done in range(kills):
        process = runs.start(workdir, *arguments)
        if done % 2 == 0:
            for _ in range(rng.randint(1, 3)):  # the first, second or third checkpoint of this life
                runs.wait_for(lambda: process.poll() is not None or not runs.is_saving(workdir))  # noqa: B023
                runs.wait_for(lambda: process.poll() is not None or runs.is_saving(workdir))  # noqa: B023
            time.sleep(rng.uniform(0, 0.05))
        else:
            before = runs.logged_steps(workdir)
            runs.wait_for(lambda: process.poll() is not None or runs.logged_steps(workdir) != before)  # noqa: B023
            time.sleep(rng.uniform(0, seconds))
        if process.poll() is not None:
            _, err = process.communicate()
            assert process.returncode == 0, err
            return done
        runs.kill(process)
    code, err = runs.run(workdir, *arguments)
    assert code == 0, err
    return kills


def scores(workdir):
    """metrics.json without the config, which names the number of data workers."""
    values = json.loads((workdir / "metrics.json").read_text())
    return {name: value for name, value in values.items() if name != "config"}


def check_kills(wanted, a_run, straight, tmp_path, seed, *arguments):
    workdir, seconds = straight
    rng, kills, rounds = random.Random(seed), 0, 0
    while kills < wanted:
        killed = tmp_path / str(rounds)
        kills += kill_and_finish(killed, min(a_run, wanted - kills), seconds, rng, *arguments)
        rounds += 1
        runs.assert_same_state(killed, workdir)
        assert runs.lines(killed) == runs.lines(workdir)
        assert scores(killed) == scores(workdir)
    print(f"{kills} kills in {rounds} runs, 0 differences")


def test_a_run_killed_repeatedly_ends_like_an_uninterrupted_one(straight, tmp_path):
    check_kills(2, 2, straight, tmp_path, seed=0)  # one while saving, one at any moment


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")
def test_many_kills_change_nothing_and_leave_nothing(straight, tmp_path, monkeypatch):
    """DEEPLAB_JAX_TEST_KILLS sets their number. The runs have two data workers."""
    monkeypatch.setenv("DEEPLAB_JAX_TEST_MARK", "1")  # inherited by all processes of the runs
    check_kills(KILLS, 5, straight, tmp_path, 1, WORKERS)
    runs.wait_for(lambda: not runs.processes_with("DEEPLAB_JAX_TEST_MARK"), seconds=30)
    runs.wait_for(lambda: not runs.abandoned_memory(), seconds=30)


def test_sigterm_saves_at_once_and_the_run_continues_to_the_same_end(straight, tmp_path):
    workdir, _ = straight
    process = runs.start(tmp_path / "run", config="checkpoint=1000")
    runs.wait_for(lambda: runs.has_logged(tmp_path / "run"))
    process.send_signal(signal.SIGTERM)
    code, err = runs.finish(process)
    assert code == Preempted.EXIT_CODE == 75, err
    (step,) = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name != "5"] or [5]
    assert err[-1].startswith(f"deeplab-jax: stopped by SIGTERM at step {step} of 10; the state is saved in ")
    assert err[-1].endswith("; run the same command again to resume")
    assert step < 10
    code, err = runs.run(tmp_path / "run", config="checkpoint=1000")
    assert code == 0, err
    assert any(line.startswith(f"Continuing {tmp_path / 'run'} from step {step} of 10") for line in err)
    runs.assert_same_state(tmp_path / "run", workdir)
    assert runs.lines(tmp_path / "run") == runs.lines(workdir)


SLOW_STEPS = ("--config.data.image_size=(256,256)", "--config.mesh.data=1")  # about a second each
NO_CHECKPOINTS = "steps=100000,checkpoint=100000"
RESUME = "; run the same command again to resume"


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def wait_for_exit(process):
    try:
        return process.wait(timeout=100)
    finally:
        process.kill()


def test_ctrl_c_in_a_terminal_saves_and_a_second_one_ends_at_once(straight, tmp_path):
    """With steps of a second. The main thread spends nearly all of its time in JAX, outside Python."""
    workdir = tmp_path / "run"
    arguments = (*SLOW_STEPS, "--config.log.every_steps=1", "--config.eval.every=100000 steps")
    terminal = runs.start_in_terminal(workdir, *arguments, config=NO_CHECKPOINTS)
    terminal.wait_for(lambda: runs.has_logged(workdir))
    terminal.press_ctrl_c()
    assert wait_for_exit(terminal.process) == 130, terminal.output
    (step,) = saved_steps(workdir)
    assert "Ctrl-C: finishing this step and saving; press Ctrl-C to stop at once without saving" in terminal.output
    assert f"stopped by Ctrl-C at step {step} of 100000; the state is saved in {workdir}{RESUME}" in terminal.output
    terminal = runs.start_in_terminal(workdir, *arguments, config=NO_CHECKPOINTS)
    terminal.wait_for(lambda: max(runs.logged_steps(workdir)) > step)
    terminal.press_ctrl_c()
    terminal.wait_for(lambda: "finishing this step" in terminal.output)
    terminal.press_ctrl_c()
    begin = time.monotonic()
    assert wait_for_exit(terminal.process) == 130
    assert time.monotonic() - begin < 2
    assert "Traceback" not in terminal.output


@pytest.mark.slow
def test_a_closed_terminal_saves(straight, tmp_path):
    workdir = tmp_path / "run"
    terminal = runs.start_in_terminal(workdir, config=NO_CHECKPOINTS)
    terminal.wait_for(lambda: runs.has_logged(workdir))
    terminal.process.send_signal(signal.SIGHUP)
    assert wait_for_exit(terminal.process) == 129, terminal.output
    (step,) = saved_steps(workdir)
    assert f"stopped by a closed terminal (SIGHUP) at step {step} of 100000; the state is saved" in terminal.output


@pytest.mark.slow
def test_ctrl_c_while_the_step_is_compiled_ends_at_once(straight, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    workdir = tmp_path / "run"
    terminal = runs.start_in_terminal(workdir, config=NO_CHECKPOINTS)
    terminal.wait_for(lambda: (workdir / "data.json").exists())
    time.sleep(2)
    begin = time.monotonic()
    terminal.press_ctrl_c()
    assert wait_for_exit(terminal.process) == 130, terminal.output
    assert time.monotonic() - begin < 2
    assert f"stopped by Ctrl-C{RESUME}" in terminal.output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_during_an_evaluation_saves_and_the_evaluation_is_repeated(straight, tmp_path, name):
    uninterrupted, _ = straight
    workdir, config = tmp_path / "run", "checkpoint=1000"
    process = runs.start(workdir, "--config.eval.batch_size=1", config=config)
    runs.wait_for(lambda: runs.logged_steps(workdir)[-1:] == [5])  # the next line is that of the evaluation
    process.send_signal(getattr(signal, name))
    code, err = runs.finish(process)
    assert code == Preempted.EXIT_CODES[name], err
    assert runs.logged_steps(workdir) == [3, 5], "the evaluation was faster than the signal"
    assert saved_steps(workdir) == [5]
    code, err = runs.run(workdir, config=config)
    assert code == 0, err
    runs.assert_same_state(workdir, uninterrupted)
    assert runs.lines(workdir) == runs.lines(uninterrupted)


@pytest.mark.slow
def test_sigterm_to_the_process_group_saves_although_it_has_data_workers(straight, tmp_path):
    workdir = tmp_path / "run"
    process = runs.start(workdir, WORKERS, config=NO_CHECKPOINTS, new_session=True)
    runs.wait_for(lambda: runs.has_logged(workdir))
    os.killpg(process.pid, signal.SIGTERM)
    code, err = runs.finish(process)
    assert code == 75, err
    assert len(saved_steps(workdir)) == 1


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_reported_and_replaced(straight, tmp_path):
    workdir, _ = straight
    damaged = shutil.copytree(workdir, tmp_path / "run")
    file = max((damaged / "checkpoints" / "10" / "training").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, which Orbax restores without a word
    file.write_bytes(content)
    code, err = runs.run(damaged)
    assert code == 0, err
    (line,) = [line for line in err if "is damaged" in line]
    assert f"{damaged}/checkpoints/10 is damaged (its file training/" in line
    assert "; using the previous one" in line
    assert any("from step 8 of 10" in line for line in err)
    runs.assert_same_state(damaged, workdir)
    assert runs.lines(damaged) == runs.lines(workdir)
    assert (damaged / "checkpoints" / "10.damaged").is_dir()


def test_the_best_score_survives_a_restart(straight):
    workdir, _ = straight
    notes = json.loads((workdir / "checkpoints" / "10" / "notes" / "metadata").read_text())
    (evaluation,) = [row for row in runs.lines(workdir) if row["step"] == 5 and "eval" in row]
    assert notes["best"] == {"step": 5, "mean_iou": evaluation["eval"]["mean_iou"]}
    assert (workdir / "checkpoints" / "5").is_dir()  # though only the two newest are kept
