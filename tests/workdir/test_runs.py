"""The list of runs below a folder."""

import json

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.workdir import layout, runs
from tests.workdir.test_layout import DATA


@pytest.fixture
def begin(tmp_path, tiny_config):
    """Writes a workdir with evaluations: mean IoU by step."""

    def write(name, evaluations, *, duration="4 steps", rate=0.02, steps=4):
        tiny_config.train.duration, tiny_config.optimizer.learning_rate = duration, rate
        tiny_config.data.data_dir = f"/data/{name}"
        workdir = tmp_path / name
        with layout.lock(workdir):
            layout.write_config(workdir, tiny_config, SYNTHETIC, DATA)
        lines = [{"step": step, "loss": 1.0} for step in range(1, steps + 1)]
        lines += [{"step": step, "eval": {"mean_iou": score, "loss": 0.5}} for step, score in evaluations.items()]
        lines.sort(key=lambda line: line["step"])
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return workdir

    return write


def test_runs_are_listed_by_their_best_score(begin, tmp_path):
    begin("sweep/a", {2: 0.4, 4: 0.3})
    begin("b", {2: 0.1, 4: 0.5}, rate=0.1)
    stopped = begin("sweep/c", {}, duration="2 epochs", steps=3)  # of 16 examples in batches of 8
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ev')  # cut short
    begin("sweep/a/nested", {4: 0.9})  # part of another workdir
    found = runs.list_runs(tmp_path)
    assert [(run.name, run.state, run.step, run.total_steps) for run in found] == [
        ("b", "finished", 4, 4),
        ("sweep/a", "finished", 4, 4),
        ("sweep/c", "stopped", 3, 4),
    ]
    assert [run.best and (run.best["step"], run.best["mean_iou"]) for run in found] == [(4, 0.5), (2, 0.4), None]
    assert found[1].last == {"step": 4, "mean_iou": 0.3, "loss": 0.5}
    assert runs.differing_fields(found) == {
        "train.duration": ["4 steps", "4 steps", "2 epochs"],
        "optimizer.learning_rate": [0.1, 0.02, 0.02],
    }


def test_a_run_that_is_training_is_running(begin, tmp_path):
    workdir = begin("a", {4: 0.5})
    with layout.lock(workdir):
        assert runs.list_runs(tmp_path)[0].state == "running"
    assert runs.list_runs(tmp_path)[0].state == "finished"


def test_a_run_that_ran_out_of_patience_is_finished(begin, tmp_path, tiny_config):
    tiny_config.train.patience = 2
    begin("a", {0: 0.9, 1: 0.5, 2: 0.4, 3: 0.5}, duration="9 steps")
    begin("b", {0: 0.9, 1: 0.4, 2: 0.5, 3: 0.4}, duration="9 steps")
    assert {run.name: run.state for run in runs.list_runs(tmp_path)} == {"a": "finished", "b": "stopped"}


def test_a_damaged_run_is_reported_and_left_out(begin, tmp_path, caplog):
    begin("a", {4: 0.5})
    (begin("b", {4: 0.6}) / "config.json").write_text("{")
    (begin("c", {4: 0.6}) / "data.json").write_text('{"train": {}}')
    assert [run.name for run in runs.list_runs(tmp_path)] == ["a"]
    for message, file in zip(caplog.messages, ("b/config.json", "c/data.json"), strict=True):
        assert f"{tmp_path / file}" in message


def test_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match="has no runs"):
        runs.list_runs(tmp_path)
    with pytest.raises(UserError, match="cannot read"):
        runs.list_runs(tmp_path / "absent")
