"""Whole trainings with unlabeled images: what they log, and that they resume exactly."""

import jax
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.training import loop, nonfinite_batch
from deeplab_jax.training.loop import train
from tests.training.test_loop import Killed, experiment, final_state, lines


def semi_supervised():
    """The labeled scenes are the unlabeled ones, too."""
    config = experiment(steps=4)
    config.unlabeled.update(split="train", batch_size=4, teacher="average", threshold=0.17)  # six classes
    return config


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Four steps without an interruption."""
    workdir = tmp_path_factory.mktemp("straight")
    train(semi_supervised(), workdir)
    return workdir


def test_the_log_says_how_good_pseudo_labels_are(straight):
    rows = [row for row in lines(straight) if "eval" not in row]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert 0 < row["confident_share"] <= 1
        assert 0 <= row["pseudo_label_accuracy"] <= 1
        assert row["unlabeled_loss"] > 0


def test_a_stopped_run_continues_to_the_same_end(straight, tmp_path, monkeypatch, caplog):
    """Bit for bit: both streams of images continue where they were, inside of a window of the log."""
    caplog.set_level("INFO", logger="deeplab_jax")
    add = loop.MetricsWindow.add

    def die_at_four(self, step, report, batch):
        if step == 4:
            raise Killed
        add(self, step, report, batch)

    config = semi_supervised()
    config.checkpoint.every = "3 steps"
    monkeypatch.setattr(loop.MetricsWindow, "add", die_at_four)
    with pytest.raises(Killed):
        train(config, tmp_path)
    monkeypatch.undo()
    train(config, tmp_path)
    assert "; 4 of 20 unlabeled images per step; 200 images to evaluate on" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, final_state(straight), final_state(tmp_path))
    assert lines(tmp_path) == lines(straight)


def test_a_run_does_not_continue_with_other_pseudo_labels(straight):
    config = semi_supervised()
    config.unlabeled.threshold = 0.9
    with pytest.raises(UserError, match=r"different config \(unlabeled.threshold"):
        train(config, straight)


def test_a_step_that_is_not_finite_names_its_images_of_both_kinds(tmp_path):
    report = {"loss_sum": np.float32(1), "loss_count": np.int32(1), "gradient_norm": np.inf, "learning_rate": 0.1}
    batch = {"id": np.array(["a", "b"]), "unlabeled_id": np.array(["c"]), "unlabeled_weak": np.zeros((1, 2, 2, 3))}
    text = nonfinite_batch.describe(7, report, batch, nonfinite_batch.save_batch(tmp_path, 7, batch))
    assert "; examples: a, b, c; batch saved in" in text
    with np.load(tmp_path / "step_00000007.npz") as saved:
        assert saved["unlabeled_id"].tolist() == ["c"]


def test_a_missing_split_of_unlabeled_images_is_named(tmp_path):
    config = semi_supervised()
    config.unlabeled.split = "unlabelled"
    with pytest.raises(UserError, match="^synthetic has no split 'unlabelled'; choose from train, val"):
        train(config, tmp_path / "run")
