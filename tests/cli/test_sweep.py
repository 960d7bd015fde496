"""`deeplab-jax sweep`."""

import json

import pytest

from deeplab_jax.cli import sweep as command
from deeplab_jax.config import base_config
from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.labels import LabelSet
from deeplab_jax.training import loop
from deeplab_jax.workdir import layout


def start_sweep(run, folder, *arguments):
    return run("sweep", "--config", "quickstart", "--workdir", folder / "sweep", *arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.learning_rate=0.01,0.02", ("optimizer.learning_rate", ["0.01", "0.02"])),
        ("config.data.image_size=(64,64),(96, 96)", ("data.image_size", ["(64,64)", "(96, 96)"])),
        (
            "loss.terms=cross_entropy + dice(smooth=1),'focal'",
            ("loss.terms", ["cross_entropy + dice(smooth=1)", "'focal'"]),
        ),
        ("x.y='a,b',\"c,d\"", ("x.y", ["'a,b'", '"c,d"'])),
        ("optimizer.frozen=('a',),[]", ("optimizer.frozen", ["('a',)", "[]"])),
    ],
)
def test_commas_separate_values_unless_they_are_inside_one(text, expected):
    assert command._parse_grid(text) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "optimizer.learning_rate"], "is not FIELD=VALUE,VALUE,..."),
        (["--grid", "optimizer.learning_rate=0.1,,0.2"], "is not FIELD=VALUE,VALUE,..."),
        (
            ["--grid", "optimizer.lr=0.1"],
            "config field optimizer.lr does not exist; did you mean optimizer.learning_rate?",
        ),
        (["--grid", "optimizer.learning_rate=0.1,fast"], "could not convert string to float: 'fast'"),
        (["--grid", "optimizer.momentum=0.1", "--grid", "optimizer.momentum=0.2"], "is given twice"),
        ([], "the following arguments are required: --grid"),
    ],
)
def test_a_wrong_grid_is_a_wrong_command_line(run, tmp_path, arguments, message):
    code, out, err = start_sweep(run, tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert message in err[-1]
    assert not (tmp_path / "sweep").exists()


def test_an_illegal_value_is_refused_before_anything_trains(run, tmp_path):
    code, _, err = start_sweep(run, tmp_path, "--grid", "optimizer.momentum=0.5,1.5")
    assert code == 1
    assert "momentum=1.5: optimizer.momentum=1.5 must be" in err[-1]
    assert not (tmp_path / "sweep").exists()


def write_run(config, folder, mean_iou=0.5):
    """Writes what `runs` reads of a run."""
    label_set = LabelSet(("ground", "crop"), ((0, 0, 0), (255, 255, 255)))
    folder.mkdir(parents=True)
    layout.write_config(folder, config, label_set, {"train": {"splits": {"train": {"examples": 8}}}, "evaluate": {}})
    line = {"step": 1, "eval": {"mean_iou": mean_iou}}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def test_the_table_and_the_exit_code_tell_what_became_of_the_runs(run, tmp_path, monkeypatch):
    trained = []

    def train(config, folder, **options):
        trained.append((config.optimizer.learning_rate, config.optimizer.momentum, config.data.batch_size))
        if config.optimizer.learning_rate > 1:
            raise UserError("the loss is not finite")
        write_run(config, folder)
        return {"mean_iou": 0.5}

    monkeypatch.setattr(loop, "train", train)
    grid = ["--grid", "optimizer.learning_rate=0.1,2", "--grid", "optimizer.momentum=0.5", "--json"]
    code, out, err = start_sweep(run, tmp_path, *grid, "--config.data.batch_size=16")
    assert trained == [(0.1, 0.5, 16), (2.0, 0.5, 16)]
    assert code == 1
    assert "1 of 2 runs failed (learning_rate=2.0,momentum=0.5: the loss is not finite)" in err[-1]
    assert [each["name"] for each in json.loads(out)] == ["learning_rate=0.1,momentum=0.5"]


def test_a_signal_ends_the_sweep_with_its_exit_code(run, tmp_path, monkeypatch):
    def train(*args, **options):
        raise Preempted("stopped by SIGTERM at step 3 of 4; the state is saved in x")

    monkeypatch.setattr(loop, "train", train)
    code, out, err = start_sweep(run, tmp_path, "--grid", "optimizer.learning_rate=0.1,0.2")
    assert (code, out) == (75, "")
    assert err[-1].endswith("the state is saved in x; run the same command again to resume")


def test_the_folder_of_a_sweep_is_not_a_workdir(run, tmp_path):
    write_run(base_config(), tmp_path / "sweep")
    code, _, err = start_sweep(run, tmp_path, "--grid", "optimizer.learning_rate=0.1,0.2")
    assert code == 1
    assert "is the workdir of a run, not of a sweep" in err[-1]
