"""Logging windows that another process continues, steps that are not finite, and warnings."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.training import nonfinite_batch
from deeplab_jax.training.metrics_window import MetricsWindow
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


def make_window(folder, policy="stop", **options):
    writer = Recorder()
    window = MetricsWindow(writer, SYNTHETIC, policy=policy, folder=folder / "nonfinite", **options)
    return window, writer.rows


def test_a_window_that_another_process_continues_gives_the_same_means(tmp_path):
    whole, expected = make_window(tmp_path)
    for step in range(1, 5):
        whole.add(step, report(step), batch("broken" if step == 2 else ""))
    whole.end_at(4)
    whole.catch_up()
    first, rows = make_window(tmp_path)
    for step in (1, 2):
        first.add(step, report(step), batch("broken" if step == 2 else ""))
    first.catch_up()
    saved = json.loads(json.dumps(first.to_json()))
    first.add(3, report(3), batch("broken"))  # the window is written in the background while the training goes on
    second, rows = make_window(tmp_path, saved=saved)
    for step in (3, 4):
        second.add(step, report(step), batch())
    second.end_at(4)
    second.catch_up()
    assert rows == expected
    assert rows[0]["unreadable_examples"] == 1


def test_each_term_of_the_loss_is_written(tmp_path):
    window, rows = make_window(tmp_path)
    for step, images in ((1, 2), (2, 6)):
        terms = {"cross_entropy": (jnp.float32(8 * step), jnp.int32(12)), "dice": (jnp.float32(1), jnp.int32(images))}
        window.add(step, report(step) | {"loss_terms": terms}, batch())
    window.end_at(2)
    window.catch_up()
    (row,) = rows
    assert row["loss_terms"] == {"cross_entropy": 1.0, "dice": 0.25}
    assert row["loss"] == 1.25


def test_reports_are_read_one_step_late(tmp_path):
    window, rows = make_window(tmp_path)
    window.add(1, report(1), batch())
    window.end_at(1)
    assert rows == []  # the host has not waited
    window.add(2, report(2), batch())
    assert [(row["step"], row["loss"]) for row in rows] == [(1, pytest.approx(10.1 / 7))]


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_batch(tmp_path, loss):
    window, _ = make_window(tmp_path)
    window.add(7, report(7, loss), batch())
    shown = {np.nan: "nan", np.inf: "inf", -np.inf: "-inf"}[loss]
    path = tmp_path / "nonfinite" / "step_00000007.npz"
    message = (
        f"^step 7 is not finite: loss {shown}, gradient norm 0.5, learning rate 0.125; examples: train_00000, "
        f"train_00001, train_00002; batch saved in {re.escape(str(path))}; earlier checkpoints are intact"
    )
    with pytest.raises(UserError, match=message):
        window.add(8, report(8), batch())
    with np.load(path) as saved:
        np.testing.assert_array_equal(saved["image"], batch()["image"])
        assert saved["id"].tolist() == batch()["id"].tolist()


def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path):
    window, _ = make_window(tmp_path)
    window.add(7, report(7, gradient_norm=np.inf), batch())
    with pytest.raises(UserError, match="^step 7 is not finite: loss 10.1, gradient norm inf"):
        window.catch_up()


def test_the_examples_of_all_processes_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(nonfinite_batch.processes, "gather", lambda ids: [ids, ["elsewhere"]])
    text = nonfinite_batch.describe(7, report(7, np.nan), batch(), tmp_path / "mine.npz")
    assert "; examples: train_00000, train_00001, train_00002, elsewhere; batch saved in " in text


def test_skipped_steps_are_counted_and_left_out_of_the_means(tmp_path, caplog):
    window, rows = make_window(tmp_path, policy="skip")
    window.add(1, report(1), batch())
    window.add(2, report(2, np.nan), batch())
    window.end_at(2)
    window.catch_up()
    assert rows[0]["skipped_steps"] == 1
    assert rows[0]["loss"] == pytest.approx(10.1 / 7)
    (warning,) = caplog.messages
    assert warning.startswith("step 2 is not finite: loss nan")
    assert warning.endswith("; skipped")


def test_too_many_consecutive_steps_that_are_not_finite_stop_the_run(tmp_path):
    window, _ = make_window(tmp_path, policy="skip")
    for step in range(1, 11):
        window.add(step, report(step, np.inf), batch())
    with pytest.raises(UserError, match="step 10 is not finite.*so were the 9 steps before it"):
        window.catch_up()


def test_a_collapse_to_one_class_is_warned_about_once(tmp_path, caplog):
    window, _ = make_window(tmp_path)
    collapsed = np.zeros((6, 6), int)
    collapsed[:, 2] = 5
    for step, confusion in enumerate((None, collapsed, collapsed, None, collapsed), start=1):
        window.add(step, report(step, confusion=confusion), batch())
        window.end_at(step)
    window.catch_up()
    assert [line.partition(":")[0] for line in caplog.messages] == ["step 2", "step 5"]
    assert "every pixel since the last report is predicted as ring; the network has collapsed" in caplog.messages[0]


def test_a_network_may_begin_with_one_class(tmp_path, caplog):
    window, _ = make_window(tmp_path, first_steps=2)
    collapsed = np.zeros((6, 6), int)
    collapsed[:, 2] = 5
    for step in (1, 2, 3):
        window.add(step, report(step, confusion=collapsed), batch())
        window.end_at(step)
    window.catch_up()
    assert [line.partition(":")[0] for line in caplog.messages] == ["step 3"]


def test_images_of_one_class_are_not_a_collapse(tmp_path, caplog):
    window, _ = make_window(tmp_path)
    window.add(1, report(1, confusion=np.diag([0, 0, 5, 0, 0, 0])), batch())
    window.end_at(1)
    window.catch_up()
    assert caplog.messages == []


def test_an_unreadable_example_is_warned_about_once(tmp_path, caplog):
    window, _ = make_window(tmp_path)
    for step in (1, 2):
        window.add(step, report(step), batch("", "example 3 is damaged", ""))
    assert caplog.messages == ["example 3 is damaged; using another example instead"]
