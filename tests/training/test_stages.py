"""Training in stages: each starts from the one before, and the workdir means the last."""

import json

import jax
import numpy as np
import pytest

from deeplab_jax import config as config_lib
from deeplab_jax import pretrained
from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.evaluation.evaluator import evaluate
from deeplab_jax.parallel.preemption import Preemption
from deeplab_jax.training.loop import train
from deeplab_jax.workdir import layout, runs
from tests.support import tiny_experiment

pytestmark = pytest.mark.usefixtures("toy_models")


def experiment():
    config = tiny_experiment.get_config("steps=2")
    config.mesh.data = 1
    config.eval.every = None
    config.train.ema_decay = None  # averages of equal numbers differ by rounding
    config.stages = {
        "stage1": {},
        "stage2": {
            "model": {"freeze_norm_statistics": True},
            "optimizer": {"learning_rate": 0.001},
            "train": {"duration": "3 steps"},
        },
    }
    return config


def variables(workdir):
    return jax.device_get(pretrained.load(workdir).variables)


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory, toy_models):
    workdir = tmp_path_factory.mktemp("stages")
    return workdir, train(experiment(), workdir)


def test_each_stage_trains_from_the_one_before(two_stages, tmp_path):
    """As two trainings with a config each."""
    workdir, scores = two_stages
    first, second = (config_lib.stage_config(experiment(), name) for name in ("stage1", "stage2"))
    assert (second.train.duration, second.optimizer.learning_rate) == ("3 steps", 0.001)
    second.train.init_from = str(workdir / "stage1")
    assert train(second, tmp_path)["loss"] == scores["loss"]
    jax.tree.map(np.testing.assert_array_equal, variables(tmp_path), variables(workdir / "stage2"))
    assert layout.read_config(workdir / "stage1").train.duration == first.train.duration
    before, after = (variables(workdir / name)["batch_stats"] for name in ("stage1", "stage2"))
    jax.tree.map(np.testing.assert_array_equal, before, after)  # frozen


def test_the_workdir_means_the_last_stage(two_stages):
    workdir, scores = two_stages
    assert layout.last_stage(workdir) == workdir / "stage2"
    jax.tree.map(np.testing.assert_array_equal, variables(workdir), variables(workdir / "stage2"))
    values = evaluate(str(workdir))
    assert (values["loss"], values["step"]) == (scores["loss"], 3)
    assert not (workdir / "metrics.json").exists()
    path, checkpoint = pretrained.split_checkpoint(f"{workdir}@2")
    assert (path, checkpoint) == (workdir / "stage2", "2")
    assert [run.name for run in runs.list_runs(workdir)] in (["stage1", "stage2"], ["stage2", "stage1"])


def test_the_config_of_the_workdir_trains_the_same_stages(two_stages):
    workdir, _ = two_stages
    config = config_lib.load_config(str(workdir / "config.json"))
    assert config.stages.to_dict() == experiment().stages.to_dict()
    assert layout.read_config(workdir / "stage2").stages.to_dict() == {}


class StopAt(Preemption):
    """A signal that arrives after a step of the second stage, which has three."""

    def reached(self, step):
        if step == 3:
            self._name = "SIGTERM"
        return super().reached(step)


def test_a_stopped_stage_continues_from_where_it_was(two_stages, tmp_path, caplog):
    """Bit for bit, also from another folder."""
    workdir, scores = two_stages
    config = experiment()
    config.stages.stage2.train.duration = "4 steps"
    with pytest.raises(Preempted, match="at step 3 of 4"):
        train(config, tmp_path / "before", preemption=StopAt())
    (tmp_path / "before").rename(tmp_path / "after")
    caplog.set_level("INFO", logger="deeplab_jax")
    assert train(config, tmp_path / "after")["step"] == 4
    assert f"Continuing {tmp_path / 'after' / 'stage2'} from step 3 of 4" in caplog.text
    assert "stage1 is finished" in caplog.text
    first = json.loads((tmp_path / "after" / "stage1" / "metrics.json").read_text())
    assert first == json.loads((workdir / "stage1" / "metrics.json").read_text())


def test_all_stages_are_checked_before_the_first_trains(tmp_path):
    config = experiment()
    config.stages.stage2.optimizer.learning_rate = -1.0
    with pytest.raises(UserError, match="^stage stage2: optimizer.learning_rate=-1.0 must be"):
        train(config, tmp_path / "run")
    config = experiment()
    config.stages.stage2 = {"data": {"train_split": "no_such_split"}}
    with pytest.raises(UserError, match="no_such_split"):
        train(config, tmp_path / "run")
    config = experiment()
    config.stages.stage2 = {"model": {"backbone": "resnet5"}}
    with pytest.raises(UserError, match="^stage stage2: model.backbone='resnet5' does not exist"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_its_stages(two_stages):
    workdir, _ = two_stages
    config = experiment()
    config.stages = {"stage1": {}}
    with pytest.raises(
        UserError, match="holds a run with the stages stage1, stage2, and this config has the stages stage1"
    ):
        train(config, workdir)
    with pytest.raises(UserError, match="a run in stages cannot be extended"):
        train(experiment(), workdir, extend=True)
