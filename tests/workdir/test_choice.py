"""Which checkpoint of a workdir is read."""

import json

import numpy as np
import pytest

from deeplab_jax import pretrained
from deeplab_jax.errors import UserError
from deeplab_jax.workdir.checkpoint import Checkpoints
from deeplab_jax.workdir.choice import best_checkpoint, choose_step


def write_run(workdir, scores, *, saved):
    """Checkpoints whose variables hold their step, and a log with scores by step."""
    with Checkpoints(workdir, keep=9) as checkpoints:
        for step in saved:
            variables = {"params": {"scale": np.full(2, step, np.float32)}}
            checkpoints.save(step, variables=variables, training={"step": np.int32(step)})
            checkpoints.wait()
    lines = [{"step": 1, "loss": 1.0, "mean_iou": 0.99}]  # training metrics do not count
    lines += [{"step": step, "eval": {"mean_iou": score}} for step, score in scores.items()]
    (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 9, "ev')


def test_the_best_is_the_first_with_the_highest_score_among_those_that_exist(tmp_path):
    write_run(tmp_path, {2: 0.9, 4: 0.5, 6: 0.7, 8: 0.7, 10: None}, saved=[4, 6, 8, 10])
    assert best_checkpoint(tmp_path) == (6, 0.7)
    assert choose_step(tmp_path, "best") == 6
    assert choose_step(tmp_path, "8") == 8
    assert choose_step(tmp_path, "newest") is None
    for wrong in ("2", "bets", "-1"):
        with pytest.raises(UserError, match=f"no checkpoint '{wrong}'; choose newest, best, or one of 10, 8, 6, 4$"):
            choose_step(tmp_path, wrong)


def test_without_a_score_there_is_no_best(tmp_path):
    write_run(tmp_path, {}, saved=[4])
    assert best_checkpoint(tmp_path) is None
    with pytest.raises(UserError, match="was evaluated yet, so none is the best; use the newest$"):
        choose_step(tmp_path, "best")
    assert best_checkpoint(tmp_path / "none") is None


def test_only_the_chosen_checkpoint_is_read(tmp_path):
    write_run(tmp_path, {4: 0.5, 6: 0.4}, saved=[4, 6])
    for chosen, step in ((4, 4), (None, 6)):
        with Checkpoints(tmp_path, read_only=True, step=chosen) as checkpoints:
            assert checkpoints.found_step() == checkpoints.latest_step() == step
            np.testing.assert_array_equal(checkpoints.saved_variables()["params"]["scale"], [step, step])
    (tmp_path / "checkpoints" / "4" / "notes" / "metadata").write_text("damaged")
    damaged = pytest.raises(UserError, match="^checkpoint 4 in .* is damaged")
    with Checkpoints(tmp_path, read_only=True, step=4) as checkpoints, damaged:
        checkpoints.latest_step()


def test_a_workdir_can_name_its_checkpoint(tmp_path):
    (tmp_path / "run").mkdir()
    assert pretrained.split_checkpoint(tmp_path / "run") == (tmp_path / "run", None)
    assert pretrained.split_checkpoint(f"{tmp_path}/run@best") == (tmp_path / "run", "best")
    (tmp_path / "run@best").mkdir()  # a folder may have such a name
    assert pretrained.split_checkpoint(f"{tmp_path}/run@best") == (tmp_path / "run@best", None)
    assert pretrained.split_checkpoint("owner@name")[1] is None
