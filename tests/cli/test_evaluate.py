"""`deeplab-jax evaluate`."""

import json

import pytest

from deeplab_jax.pretrained import bundle, load


def test_evaluating_again_gives_the_same_scores(run, workdir, tmp_path):
    at_the_end = json.loads((workdir / "metrics.json").read_text())
    (workdir / "metrics.json").unlink()
    code, out, err = run("evaluate", "--workdir", workdir, "--json", tmp_path / "scores.json")
    assert (code, out) == (0, "")
    assert f"mean IoU {at_the_end['mean_iou']:.4f}" in err[-1]
    assert json.loads((workdir / "metrics.json").read_text()) == at_the_end
    assert json.loads((tmp_path / "scores.json").read_text()) == at_the_end


def test_split_and_protocol_can_be_changed(run, workdir):
    arguments = ["--split", "train", "--config.eval.protocol=squeeze", "--config.data.num_examples=10", "--json"]
    code, out, err = run("evaluate", "--workdir", workdir, *arguments)
    assert code == 0, err
    scores = json.loads((workdir / "metrics.json").read_text())
    assert json.loads(out) == scores
    assert scores["num_images"] == 10
    assert scores["config"]["eval"]["protocol"] == "squeeze"


def test_a_preset_is_evaluated_without_writing_files(run, trained, tmp_path):
    folder = tmp_path / "net"
    bundle.save(load(trained), folder)
    files = sorted(folder.iterdir())
    arguments = ["--data", "synthetic", "--split", "train", "--config.data.num_examples=10", "--config.mesh.data=1"]
    code, _, err = run("evaluate", "--preset", folder, *arguments, "--json", tmp_path / "scores.json")
    assert code == 0, err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["num_images"] == 10
    assert err[-1].endswith("on 10 images")
    assert f"mean IoU {scores['mean_iou']:.4f}" in err[-1]
    assert sorted(folder.iterdir()) == files


def test_data_with_other_classes_is_rejected(run, fails, workdir, own_folder, tmp_path):
    code, _, err = run("data", "prepare", "folder", "--source", own_folder, "--data-dir", tmp_path / "data")
    assert code == 0, err
    before = (workdir / "metrics.json").read_bytes()
    arguments = ["--data", "folder", "--data-dir", tmp_path / "data"]
    fails("evaluate", "--workdir", workdir, *arguments, message="folder has the classes ground, crop, weed")
    assert (workdir / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "a.png", "--output", "out"]], ids=lambda c: c[0])
def test_a_run_without_a_checkpoint_is_rejected(fails, workdir, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes((workdir / "gallery.png").read_bytes())
    for step in (workdir / "checkpoints").iterdir():
        step.rename(tmp_path / f"moved_{step.name}")
    fails(*command, "--workdir", workdir, message="has no checkpoint yet")
    assert not (tmp_path / "out").exists()
