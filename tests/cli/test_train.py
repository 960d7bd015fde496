"""`deeplab-jax train`."""

import json

from deeplab_jax.config import to_dict, to_saved


def test_a_run_writes_scores_config_images_and_a_checkpoint(trained, tiny_config):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "checkpoints", "config.json", "curves.png", "data.json", "gallery.png", "labels.json", "learning_rate.png",
        "lock", "metrics.json", "metrics.jsonl",
    }  # fmt: skip
    scores = json.loads((trained / "metrics.json").read_text())
    assert scores["step"] == 2
    assert scores["num_images"] == 200
    assert 0 < scores["num_pixels"] < 200 * 32 * 32  # some are ignored
    assert scores["config"] == to_dict(tiny_config)
    assert json.loads((trained / "config.json").read_text()) == to_saved(tiny_config)
    assert list(scores["per_class_iou"]) == json.loads((trained / "labels.json").read_text())["class_names"]
    assert scores.keys() == {
        "mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "mean_dice", "mean_precision",
        "per_class_iou", "per_class_dice", "per_class_precision", "per_class_recall", "loss", "num_images",
        "num_pixels", "step", "config",
    }  # fmt: skip


def test_a_finished_run_reports_its_scores_again(run, workdir, tiny_arguments):
    """It only evaluates. The last line has the scores and says where to look."""
    scores = json.loads((workdir / "metrics.json").read_text())
    code, out, err = run("train", "--workdir", workdir, *tiny_arguments)
    assert (code, out) == (0, "")
    assert err[-1] == (
        f"mean IoU {scores['mean_iou']:.4f}, pixel accuracy {scores['pixel_accuracy']:.4f}, loss {scores['loss']:.4f} "
        f"on 200 images; see metrics.json and gallery.png in {workdir}; the best checkpoint (--checkpoint best) is "
        f"that of step 2, mean IoU {scores['mean_iou']:.4f}"
    )


def test_a_workdir_that_is_a_file_is_rejected(fails, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    fails("train", "--config", "quickstart", "--workdir", file, message=f"{file}")
    assert file.read_text() == "mine"
