"""Windows of a training's log that another process continues, steps that are not finite, and warnings."""

import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.training import ema, nonfinite
from deeplab_jax.training.metrics_window import TrainLog
from deeplab_jax.training.state import TrainState
from deeplab_jax.workdir import metrics_log


class Recorder(metrics_log.Writer):
    """Keeps what it is given."""

    def __init__(self):
        self.rows = []

    def write_train(self, step, values):
        self.rows.append({"step": step, **values})


def report(step, loss=None, confusion=None, gradient_norm=0.5):
    if confusion is None:
        confusion = np.arange(36).reshape(6, 6) + step
    return {
        "loss_sum": jnp.float32(loss if loss is not None else 10.1 * step),
        "loss_count": jnp.int32(7),
        "confusion": jnp.asarray(confusion, jnp.int32),
        "gradient_norm": jnp.float32(gradient_norm),
        "learning_rate": jnp.float32(0.125),
    }


def batch(*unreadable):
    ids = [f"train_{i:05d}" for i in range(3)]
    return {
        "id": np.array(ids),
        "image": np.full((3, 2, 2, 3), 7, np.uint8),
        "unreadable": np.array(unreadable or [""]),
    }


def make_log(folder, policy="stop"):
    writer, shown = Recorder(), io.StringIO()
    console = Console(file=shown, width=100)
    return TrainLog(writer, SYNTHETIC, policy=policy, folder=folder / "nonfinite", console=console), writer.rows, shown


def test_a_window_that_another_process_continues_gives_the_same_means(tmp_path):
    whole, expected, _ = make_log(tmp_path)
    for step in range(1, 5):
        whole.add(step, report(step), batch("broken" if step == 2 else ""))
    whole.end_window(4)
    whole.catch_up()
    first, rows, _ = make_log(tmp_path)
    for step in (1, 2):
        first.add(step, report(step), batch("broken" if step == 2 else ""))
    first.catch_up()
    window = first.open_window()
    first.add(3, report(3), batch("broken"))  # the window is written in the background while the training goes on
    second, rows, _ = make_log(tmp_path)
    second.resume(window)
    for step in (3, 4):
        second.add(step, report(step), batch())
    second.end_window(4)
    second.catch_up()
    assert rows == expected
    assert rows[0]["unreadable_examples"] == 1


def test_reports_are_read_one_step_late(tmp_path):
    log, rows, _ = make_log(tmp_path)
    log.add(1, report(1), batch())
    log.end_window(1)
    assert rows == []  # the host has not waited
    log.add(2, report(2), batch())
    assert [(row["step"], row["loss"]) for row in rows] == [(1, pytest.approx(10.1 / 7))]


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_batch(tmp_path, loss):
    log, _, _ = make_log(tmp_path)
    log.add(7, report(7, loss), batch())
    shown = {np.nan: "nan", np.inf: "inf", -np.inf: "-inf"}[loss]
    path = tmp_path / "nonfinite" / "step_00000007.npz"
    message = (
        f"^step 7 is not finite: loss {shown}, gradient norm 0.5, learning rate 0.125; its examples: train_00000, "
        f"train_00001, train_00002; its batch: {re.escape(str(path))}; the checkpoints before it are whole"
    )
    with pytest.raises(UserError, match=message):
        log.add(8, report(8), batch())
    with np.load(path) as saved:
        np.testing.assert_array_equal(saved["image"], batch()["image"])
        assert saved["id"].tolist() == batch()["id"].tolist()


def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path):
    log, _, _ = make_log(tmp_path)
    log.add(7, report(7, gradient_norm=np.inf), batch())
    with pytest.raises(UserError, match="^step 7 is not finite: loss 10.1, gradient norm inf"):
        log.catch_up()


def test_the_examples_of_all_processes_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(nonfinite.processes, "gather", lambda ids: [ids, ["elsewhere"]])
    said = nonfinite.describe(7, report(7, np.nan), batch(), tmp_path / "mine.npz")
    assert "its examples: train_00000, train_00001, train_00002, elsewhere; its batch: " in said


def test_skipped_steps_are_counted_and_do_not_enter_the_means(tmp_path):
    log, rows, shown = make_log(tmp_path, policy="skip")
    log.add(1, report(1), batch())
    log.add(2, report(2, np.nan), batch())
    log.end_window(2)
    log.catch_up()
    assert rows[0]["skipped_steps"] == 1
    assert rows[0]["loss"] == pytest.approx(10.1 / 7)
    assert shown.getvalue().startswith("warning: step 2 is not finite: loss nan")


def test_too_many_steps_in_a_row_that_are_not_finite_end_the_run(tmp_path):
    log, _, _ = make_log(tmp_path, policy="skip")
    for step in range(1, 11):
        log.add(step, report(step, np.inf), batch())
    with pytest.raises(UserError, match="step 10 is not finite.*so were the 9 steps before it"):
        log.catch_up()


def test_a_collapse_to_one_class_is_warned_of_once(tmp_path):
    log, _, shown = make_log(tmp_path)
    collapsed = np.zeros((6, 6), int)
    collapsed[:, 2] = 5
    for step, confusion in enumerate((None, collapsed, collapsed, None, collapsed), start=1):
        log.add(step, report(step, confusion=confusion), batch())
        log.end_window(step)
    log.catch_up()
    warnings = [line for line in shown.getvalue().splitlines() if line]
    assert [line.split(":")[1] for line in warnings] == [" step 2", " step 5"]
    assert "every pixel since the last line is predicted as ring; the network has collapsed" in warnings[0]


def test_images_of_one_class_are_no_collapse(tmp_path):
    log, _, shown = make_log(tmp_path)
    log.add(1, report(1, confusion=np.diag([0, 0, 5, 0, 0, 0])), batch())
    log.end_window(1)
    log.catch_up()
    assert shown.getvalue() == ""


def test_an_unreadable_example_is_warned_of_once(tmp_path):
    log, _, shown = make_log(tmp_path)
    for step in (1, 2):
        log.add(step, report(step), batch("", "example 3 is damaged", ""))
    assert shown.getvalue() == "warning: example 3 is damaged; another example takes its place\n"


# ---- The steps themselves ----


def toy_state():
    key = jax.random.PRNGKey(0)
    params = {"kernel": jnp.float32([1.0, -2.0])}
    state = TrainState(
        jnp.int32(4), jnp.uint32(32), params, {"mean": jnp.float32([3.0])}, (jnp.float32([0.5, 0.5]), jnp.int32(4)), key
    )
    return state.with_averages()


def toy_step(state, batch):
    """Adds the batch to everything; the loss is the batch's sum."""
    value = batch["value"]
    momentum, count = state.opt_state
    new = state.replace(
        step=state.step + 1,
        examples_seen=state.examples_seen + 8,
        params=jax.tree.map(lambda leaf: leaf + value, state.params),
        batch_stats=jax.tree.map(lambda leaf: leaf + value, state.batch_stats),
        opt_state=(momentum + value, count + 1),
    )
    return new, {"loss_sum": value, "gradient_norm": jnp.abs(value)}


def test_averages_follow_parameters_and_statistics():
    new, _ = jax.jit(ema.averaging(toy_step, 0.75))(toy_state(), {"value": jnp.float32(2.0)})
    np.testing.assert_array_equal(new.params["kernel"], [3.0, 0.0])
    np.testing.assert_array_equal(new.batch_stats["mean"], [5.0])
    assert new.evaluated_variables is new.ema_variables
    np.testing.assert_array_equal(new.evaluated_variables["params"]["kernel"], [1.5, -1.5])
    np.testing.assert_array_equal(new.evaluated_variables["batch_stats"]["mean"], [3.5])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_only_the_counters(value):
    step = nonfinite.passing_over(ema.averaging(toy_step, 0.75))
    before = toy_state()
    after, _ = jax.jit(step)(before, {"value": jnp.float32(value)})
    expected = before.replace(
        step=jnp.int32(5), examples_seen=jnp.uint32(40), opt_state=(before.opt_state[0], jnp.int32(5))
    )
    jax.tree.map(np.testing.assert_array_equal, after, expected)


def test_a_finite_step_is_not_changed_by_passing_over():
    step = ema.averaging(toy_step, 0.75)
    batch = {"value": jnp.float32(0.3)}
    results = [jax.jit(fn)(toy_state(), batch)[0] for fn in (step, nonfinite.passing_over(step))]
    jax.tree.map(np.testing.assert_array_equal, *results)
