"""`deeplab-jax evaluate`."""

import json

import numpy as np
import pytest

from deeplab_jax.cli import exits
from deeplab_jax.data.sources import synthetic
from deeplab_jax.parallel.preemption import Preemption
from deeplab_jax.pretrained import bundle, load


def test_evaluating_again_gives_the_same_scores(run, workdir, tmp_path):
    at_the_end = json.loads((workdir / "metrics.json").read_text())
    (workdir / "metrics.json").unlink()
    code, out, err = run("evaluate", "--workdir", workdir, "--json", tmp_path / "scores.json")
    assert code == 0, err
    assert f"mean IoU {at_the_end['mean_iou']:.4f}" in err[-1]
    assert json.loads((workdir / "metrics.json").read_text()) == at_the_end
    assert json.loads((tmp_path / "scores.json").read_text()) == at_the_end
    check_table(out, at_the_end)


def check_table(out, scores):
    """Checks that the scores of every class, and the means, are printed."""
    rows = [[cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")] for line in out.splitlines()]
    assert ["class", "IoU", "Dice", "precision", "recall"] in rows
    for name in scores["per_class_iou"]:
        values = [scores[f"per_class_{column}"][name] for column in ("iou", "dice", "precision", "recall")]
        assert [name, *("–" if value is None else f"{100 * value:.2f}" for value in values)] in rows
    means = [scores[f"mean_{column}"] for column in ("iou", "dice", "precision", "accuracy")]
    assert ["mean", *(f"{100 * mean:.2f}" for mean in means)] in rows


def test_a_report_is_kept_beside_those_with_other_settings(run, workdir):
    few = ["--workdir", workdir, "--split", "train", "--config.data.num_examples=6", "--config.mesh.data=1"]
    code, out, err = run("evaluate", *few, "--report", "--worst", 2)
    assert code == 0, err
    assert "boundary IoU" in out
    folder = workdir / "report-data.num_examples=6;split=train"
    assert str(folder / "report.html") in err[-1]
    names = {
        "report.html",
        "scores.json",
        "confusion.csv",
        "confusion.png",
        "images.csv",
        "calibration.png",
        "trimap.png",
    }
    assert {path.name for path in folder.iterdir()} == names
    scores = json.loads((folder / "scores.json").read_text())
    assert json.loads((workdir / "metrics-data.num_examples=6;split=train.json").read_text()) == scores
    rows = (folder / "images.csv").read_text().splitlines()[1:]
    assert len(rows) == 6
    assert sum(int(row.split(",")[-1]) for row in rows) == scores["num_pixels"]
    confusion = [row.split(",")[1:] for row in (folder / "confusion.csv").read_text().splitlines()[1:]]
    assert sum(int(count) for row in confusion for count in row) == scores["num_pixels"]
    calibration, accuracy = scores["calibration"], scores["pixel_accuracy"]
    assert sum(calibration["pixels"]) == scores["num_pixels"]
    correct = sum(n * mean for n, mean in zip(calibration["pixels"], calibration["accuracy"], strict=True) if n)
    assert correct / scores["num_pixels"] == pytest.approx(accuracy, rel=1e-9)  # sums of float64
    page = (folder / "report.html").read_text()
    assert page.count("<h3>") == 2
    assert f"{100 * scores['mean_iou']:.2f}" in page
    assert not (workdir / "report").exists()


def test_mistakes_about_reports_are_found_first(run, fails, workdir, tmp_path):
    for arguments, message in (
        (["--workdir", workdir, "--worst", 3], "--worst applies to the report; add --report"),
        (["--preset", "deeplab_v3_plus_efficientnet_lite0_pascalvoc", "--report"], "give --report a folder"),
    ):
        code, out, err = run("evaluate", *arguments)
        assert (code, out, len(err)) == (2, "", 1)
        assert message in err[0]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.html").write_text("another")
    fails("evaluate", "--workdir", workdir, "--report", tmp_path / "full", message="full exists and is not empty")
    assert (tmp_path / "full" / "report.html").read_text() == "another"


def test_split_and_protocol_can_be_changed(run, workdir):
    arguments = ["--split", "train", "--config.eval.protocol=squeeze", "--config.data.num_examples=10", "--json"]
    before = (workdir / "metrics.json").read_bytes()
    code, out, err = run("evaluate", "--workdir", workdir, *arguments)
    assert code == 0, err
    assert (workdir / "metrics.json").read_bytes() == before
    (file,) = workdir.glob("metrics-*.json")
    assert file.name == "metrics-data.num_examples=10;eval.protocol=squeeze;split=train.json"
    assert (workdir / "gallery-data.num_examples=10;eval.protocol=squeeze;split=train.png").exists()
    scores = json.loads(file.read_text())
    assert json.loads(out) == scores
    assert scores["num_images"] == 10
    assert scores["config"]["eval"]["protocol"] == "squeeze"


def test_a_checkpoint_that_does_not_exist_is_named(run, fails, workdir):
    fails(
        "evaluate", "--workdir", workdir, "--checkpoint", 99, message="has no checkpoint '99'; choose newest, best, or"
    )
    code, _, err = run("evaluate", "--workdir", workdir, "--checkpoint", "last")
    assert (code, len(err)) == (2, 1)
    assert "'last' is not best, newest or the step of a checkpoint" in err[0]


def test_a_workdir_can_name_its_checkpoint(fails, workdir, tmp_path):
    named, message = f"{workdir}@99", "has no checkpoint '99'; choose newest, best, or"
    fails("evaluate", "--workdir", named, message=message)
    fails("convert", "--from", "workdir", named, "--output", tmp_path / "network", message=message)
    fails("predict", "--workdir", named, "--output", tmp_path / "masks", __file__, message=message)


def test_channels_to_draw_are_checked_first(fails, workdir):
    message = "data.display_channels=(0, 1, 3) must be three channels of 0 to 2"
    fails("evaluate", "--workdir", workdir, "--config.data.display_channels=0,1,3", message=message)


def test_scores_that_cannot_be_saved_are_shown(run, workdir):
    scores = json.loads((workdir / "metrics.json").read_text())
    (workdir / "metrics.json").unlink()
    (workdir / "metrics.json").mkdir()
    code, out, err = run("evaluate", "--workdir", workdir, "--json")
    assert code == 1
    assert json.loads(out) == scores
    assert err[-2].startswith(f"mean IoU {scores['mean_iou']:.4f}, ")
    assert err[-1].startswith(f"deeplab-jax: cannot write {workdir / 'metrics.json'}: Is a directory")


def test_a_json_file_that_cannot_be_written_is_rejected_first(run, tmp_path):
    (tmp_path / "folder").mkdir()
    for file, message in (("none/scores.json", "there is no folder"), ("folder", "it is a folder")):
        code, out, err = run("evaluate", "--workdir", tmp_path, "--json", tmp_path / file)
        assert (code, out, len(err)) == (2, "", 1)
        assert f"cannot write {tmp_path / file}: {message}" in err[0]


def test_a_split_without_labeled_pixels_is_rejected(fails, workdir, monkeypatch):
    original = synthetic.SyntheticSource.__getitem__

    def ignored(self, index):
        example = original(self, index)
        return example | {"label": np.full_like(example["label"], 255)}

    monkeypatch.setattr(synthetic.SyntheticSource, "__getitem__", ignored)
    fails("evaluate", "--workdir", workdir, message="synthetic/val has no labeled pixels: all pixels of its 200 masks")


def test_a_preset_is_evaluated_without_writing_files(run, trained, tmp_path):
    folder = tmp_path / "net"
    bundle.save(load(trained), folder)
    files = sorted(folder.iterdir())
    arguments = ["--data", "synthetic", "--split", "train", "--config.data.num_examples=10", "--config.mesh.data=1"]
    report = tmp_path / "report"
    code, _, err = run(
        "evaluate", "--preset", folder, *arguments, "--json", tmp_path / "scores.json", "--report", report
    )
    assert code == 0, err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["num_images"] == 10
    assert err[-1].endswith(f"on 10 images; see {report / 'report.html'}")
    assert json.loads((report / "scores.json").read_text()) == scores
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


class StopAfter(Preemption):
    """A signal before a batch."""

    def __init__(self, batches: int):
        super().__init__()
        self._batches = batches

    def reached(self, step: int) -> bool:
        return step == self._batches


def test_a_stopped_evaluation_continues_and_equals_an_uninterrupted_one(run, workdir, monkeypatch):
    few = ["--workdir", workdir, "--split", "train", "--config.data.num_examples=24", "--config.mesh.data=1"]
    few += ["--config.eval.batch_size=5", "--report", "--worst", 3]
    suffix = "-data.num_examples=24;split=train"
    partial, report = workdir / f"partial_evaluation{suffix}", workdir / f"report{suffix}"

    def results():
        files = [workdir / f"metrics{suffix}.json", workdir / f"gallery{suffix}.png"]
        files += sorted(report.iterdir())
        found = {path.name: path.read_bytes() for path in files}
        for path in files:
            path.unlink()
        return found

    assert run("evaluate", *few).code == 0
    straight = results()
    stops = iter([3])
    monkeypatch.setattr(exits, "notice_signals", lambda **options: StopAfter(next(stops, None)))
    code, _, err = run("evaluate", *few)
    assert code == 75
    assert err[-1] == (
        f"deeplab-jax: stopped by SIGTERM after 3 of 5 batches; the counts are saved in {partial}; run the same "
        "command again to resume"
    )
    assert not (workdir / f"metrics{suffix}.json").exists()
    code, _, err = run("evaluate", *few)
    assert (code, err[0]) == (0, "Continuing the evaluation after 3 batches")
    assert not partial.exists()
    assert results() == straight


def test_a_partial_evaluation_of_another_kind_or_a_damaged_one_is_not_used(run, workdir, monkeypatch):
    few = ["--workdir", workdir, "--split", "train", "--config.data.num_examples=24", "--config.mesh.data=1"]
    few += ["--config.eval.batch_size=5"]
    partial = workdir / "partial_evaluation-data.num_examples=24;split=train" / "process_0_of_1.json"
    with monkeypatch.context() as patch:
        patch.setattr(exits, "notice_signals", lambda **options: StopAfter(2))
        assert run("evaluate", *few).code == 75
    kept = partial.read_text()
    changed = json.loads(kept)
    changed["identity"]["checkpoint"] = "another"
    for content, message in (
        (json.dumps(changed), f"The partial evaluation in {partial.parent} is of other settings, data or weights; "),
        (kept[:99], f"warning: {partial} is damaged: not valid JSON"),
    ):
        partial.parent.mkdir(exist_ok=True)
        partial.write_text(content)
        code, _, err = run("evaluate", *few)
        assert code == 0
        assert err[0].startswith(message)
        assert not any("Continuing" in line for line in err)
