"""Sweeps: one compilation for runs that differ in numbers, and the results of single trainings."""

import contextlib
import json
import re

import jax
import numpy as np
import pytest

from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.parallel.mesh import make_mesh
from deeplab_jax.parallel.preemption import Preemption
from deeplab_jax.training import loop
from deeplab_jax.training.programs import Programs
from deeplab_jax.training.sweep import plan_runs, sweep
from deeplab_jax.workdir import checkpoint
from tests.support import tiny_experiment

RATES = [0.01, 0.02, 1e30, 0.05]  # one of them cannot train
NAMES = ["learning_rate=0.01", "learning_rate=0.02", "learning_rate=1e+30", "learning_rate=0.05"]

pytestmark = pytest.mark.usefixtures("toy_models")


def experiment():
    config = tiny_experiment.get_config("steps=4")
    config.mesh.data = 1
    config.eval.every = None
    config.optimizer.schedule = "poly"
    return config


def final_state(workdir):
    with checkpoint.Checkpoints(workdir) as checkpoints:
        return jax.device_get(checkpoints.saved_variables())


def assert_same_run(one, other):
    jax.tree.map(np.testing.assert_array_equal, final_state(one), final_state(other))
    first, second = (json.loads((workdir / "metrics.json").read_text()) for workdir in (one, other))
    assert first == second


@contextlib.contextmanager
def compilations():
    """Lists the functions that are compiled meanwhile."""
    names = []

    def note(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture(scope="module")
def three_rates(tmp_path_factory, toy_models):
    """The folder of a sweep over learning rates, its outcomes, and what it has compiled."""
    folder = tmp_path_factory.mktemp("sweep")
    with compilations() as names:
        outcomes = sweep(experiment(), {"optimizer.learning_rate": RATES}, folder)
    return folder, outcomes, names


def test_three_rates_compile_once(three_rates):
    folder, outcomes, names = three_rates
    for function in ("jit(create)", "jit(train_step)", "jit(eval_step)"):
        assert names.count(function) == 1, names
    finished = {name: rate for name, rate in zip(NAMES, RATES, strict=True) if rate < 1}
    for name, rate in finished.items():
        first = json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[0])
        assert first["learning_rate"] == pytest.approx(rate * (1 - 2 / 4) ** 0.9, rel=1e-6)  # float32, at step 3
    assert len({outcome.scores["loss"] for outcome in outcomes if outcome.scores is not None}) == len(finished)


def test_a_run_that_fails_does_not_end_the_sweep(three_rates):
    _, outcomes, _ = three_rates
    assert [outcome.name for outcome in outcomes] == NAMES
    assert [outcome.scores is None for outcome in outcomes] == [False, False, True, False]
    assert [outcome.error is None for outcome in outcomes] == [True, True, False, True]
    assert "not finite" in outcomes[2].error


def test_a_run_that_needs_too_much_memory_does_not_end_the_sweep(tmp_path, monkeypatch):
    def train(config, workdir, **_):
        if config.data.batch_size > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.")
        if config.data.batch_size == 2:
            raise RuntimeError("a fault of the code")
        return {"mean_iou": 0.5}

    monkeypatch.setattr(loop, "train", train)
    config = experiment()
    config.mesh.data = 1
    outcomes = sweep(config, {"data.batch_size": [8, 4]}, tmp_path)
    assert [(outcome.scores, outcome.error) for outcome in outcomes] == [
        (None, "out of memory"),
        ({"mean_iou": 0.5}, None),
    ]
    with pytest.raises(RuntimeError, match="^a fault of the code$"):
        sweep(config, {"data.batch_size": [2]}, tmp_path)


def test_a_run_of_a_sweep_is_the_training_of_its_config(three_rates, tmp_path):
    """Bit for bit."""
    folder, _, _ = three_rates
    config = experiment()
    config.optimizer.learning_rate = 0.05
    loop.train(config, tmp_path)
    assert_same_run(tmp_path, folder / "learning_rate=0.05")


class StopAt(Preemption):
    """A signal that arrives in a run, after a step of it."""

    def __init__(self, run, step):
        super().__init__()
        self.run, self.step, self.runs = run, step, 0

    def reached(self, step):
        self.runs += step == 1
        if self.runs == self.run and step == self.step:
            self._name = "SIGTERM"
        return super().reached(step)


def test_a_stopped_sweep_continues_to_the_same_end(three_rates, tmp_path, caplog):
    """Bit for bit."""
    caplog.set_level("INFO", logger="deeplab_jax")
    folder, _, _ = three_rates
    grid = {"optimizer.learning_rate": RATES[:2]}
    with pytest.raises(
        Preempted, match="stopped by SIGTERM at step 3 of 4; the state is saved in .*learning_rate=0.02"
    ):
        sweep(experiment(), grid, tmp_path, preemption=StopAt(run=2, step=3))
    finished = (tmp_path / NAMES[0] / "metrics.jsonl").read_text()
    caplog.clear()
    sweep(experiment(), grid, tmp_path)
    for name in NAMES[:2]:
        assert_same_run(tmp_path / name, folder / name)
    assert (tmp_path / NAMES[0] / "metrics.jsonl").read_text() == finished
    assert f"{NAMES[0]} is finished: mean IoU" in caplog.text
    assert f"Continuing {tmp_path / NAMES[1]} from step 3 of 4" in caplog.text


def test_a_finished_run_of_another_config_is_not_skipped(three_rates):
    folder, _, _ = three_rates
    config = experiment()
    config.optimizer.momentum = 0.5
    (outcome,) = sweep(config, {"optimizer.learning_rate": [0.01]}, folder)
    assert "holds a run with a different config (optimizer.momentum: 0.5 / 0.9)" in outcome.error


def test_the_runs_of_a_grid():
    grid = {"optimizer.learning_rate": [1, 0.5], "data.image_size": [[64, 64], (32, 48)], "data.name": ["synthetic"]}
    runs = plan_runs(experiment(), grid)
    assert list(runs) == [
        "learning_rate=1.0,image_size=64x64,name=synthetic",
        "learning_rate=1.0,image_size=32x48,name=synthetic",
        "learning_rate=0.5,image_size=64x64,name=synthetic",
        "learning_rate=0.5,image_size=32x48,name=synthetic",
    ]
    assert runs["learning_rate=0.5,image_size=64x64,name=synthetic"].data.image_size == (64, 64)
    runs = plan_runs(
        experiment(), {"train.init_from": ["runs/a", "runs:a"], "data.name": ["x"], "optimizer.name": ["sgd"]}
    )
    assert len(runs) == 2  # a name loses characters, and has a digest instead
    assert all(re.fullmatch(r"init_from=runsa,data\.name=x,optimizer\.name=sgd-[0-9a-f]{8}", name) for name in runs)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"optimizer.learning_rte": [1]}, "config field optimizer.learning_rte does not exist; did you mean"),
        ({"optimizer.learning_rate": [0.1, "x"]}, "optimizer.learning_rate='x': "),
        ({"optimizer.momentum": [0.9, 1.0]}, "momentum=1.0: optimizer.momentum=1.0 must be"),
        ({"optimizer.learning_rate": [1, 1.0]}, "the grid has the run learning_rate=1.0 twice"),
        # What only the network, the data, the durations and the devices tell.
        ({"model.backbone": ["resnet10_v1_slim", "resnet5"]}, "backbone=resnet5: model.backbone='resnet5' does not"),
        ({"data.train_split": ["train", "no_such"]}, "train_split=no_such: "),
        ({"optimizer.warmup": ["1 steps", "4 steps"]}, "warmup=4steps-afc5b4e2: the warm-up (4 steps) must"),
        ({"mesh.data": [1, 7]}, "data=7: data.batch_size=8 does not divide over 7 devices"),
        ({"optimizer": [1]}, "config field optimizer is a group of fields; set one of optimizer.bias_multiplier"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_trains(grid, message, tmp_path):
    with pytest.raises(UserError) as caught:
        sweep(experiment(), grid, tmp_path / "sweep")
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("field", "values", "shared"),
    [
        ("unlabeled.threshold", [0.9, 0.5], True),
        ("unlabeled.weight", [1.0, 0.5], True),
        ("unlabeled.blur", [0.0, 1.0], True),
        ("unlabeled.split", ["train", "test"], True),
        ("unlabeled.split", ["train", None], False),
        ("unlabeled.cut_mix", [0.0, 0.5], False),
        ("unlabeled.teacher", ["student", "average"], False),
    ],
)
def test_which_fields_of_unlabeled_images_the_step_contains(field, values, shared):
    config = experiment()
    config.unlabeled.split = "train"
    programs, mesh = Programs(), make_mesh(config.mesh)
    built = []
    for run in plan_runs(config, {field: values}).values():
        built.append(programs.train_program(run, 6, mesh, image_dtype="uint8", total_steps=4))
    assert (built[0].take_step is built[1].take_step) == shared
