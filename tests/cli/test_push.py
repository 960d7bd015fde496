"""`deeplab-jax push`, without a server: what it would upload and what it refuses."""

import json
import shutil

import pytest

from deeplab_jax.cli import main, parser
from deeplab_jax.pretrained import bundle, load, sharing


def test_a_dry_run_lists_files_and_facts_and_uploads_nothing(run, trained, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    code, out, err = run("push", trained, "ada/shapes", "--license", "MIT", "--author", "Ada", "--dry-run")
    assert (code, out) == (0, "")
    assert [line.partition(":")[0] for line in err[:3]] == ["README.md", "config.json", "model.safetensors"]
    assert {"license: MIT", "author: Ada", "data: synthetic"} <= set(err)
    score = json.loads((trained / "metrics.json").read_text())["mean_iou"]
    assert any(line.startswith(f"score: mean_iou {score:.4f}, synthetic ") for line in err)
    assert err[-1] == "Nothing was uploaded to ada/shapes (--dry-run)"


def test_unknown_facts_are_noted(run, trained):
    code, _, err = run("push", trained, "ada/shapes", "--dry-run")
    assert code == 0
    notes = [line for line in err if line.startswith("warning: ")]
    assert [note.split()[2] for note in notes] == ["license", "author"]


def test_a_mistake_is_one_line(run, fails, trained, tmp_path):
    fails("push", trained, "shapes", "--dry-run", message="'shapes' is not the name of a repository, owner/name")
    fails("push", tmp_path / "none", "ada/shapes", "--dry-run", message="none does not exist; expected the name of")
    fails("push", trained, "ada/shapes", "--license", "a\nb", "--dry-run", message=r"license 'a\nb' is not the name of")
    assert run("convert", "--from", "workdir", trained, "--output", tmp_path / "net").code == 0
    (tmp_path / "net" / "README.md").write_text("---\n[1]\n---\n")
    fails(
        "push", tmp_path / "net", "ada/shapes", "--dry-run", message="is not a model card: its metadata is not a YAML"
    )


def test_convert_records_license_and_author(run, trained, tmp_path):
    output = tmp_path / "net"
    arguments = ("convert", "--from", "workdir", trained, "--license", "MIT", "--author", "Ada", "--output", output)
    assert run(*arguments).code == 0
    facts = load(output).provenance
    assert (facts.license, facts.author, facts.scores) == ("MIT", "Ada", load(trained).provenance.scores)
    assert "license: mit" in (output / bundle.CARD_FILE).read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "photo.jpg", "--output", "masks"),
        ("evaluate",),
        ("export", "--to", "stablehlo", "--output", "net.stablehlo"),
        ("demo",),
        ("papers", "verify", "row"),
        ("benchmark-latency",),
    ],
)
def test_an_address_is_accepted_wherever_a_preset_is(arguments):
    _, args = parser.parse([*arguments, "--preset", "hf://ada/fields@v1"], main.COMMANDS)
    assert args.preset in ("hf://ada/fields@v1", ["hf://ada/fields@v1"])


def test_a_checkpoint_that_is_named_brings_its_own_scores_and_report(run, workdir):
    """Of two checkpoints, each with an evaluation during training; the newest one has a report."""
    shutil.copytree(workdir / "checkpoints" / "2", workdir / "checkpoints" / "1")
    lines = [{"step": 1, "eval": {"mean_iou": 0.75, "pixel_accuracy": 0.875, "num_images": 16}}]
    lines.append({"step": 2, "eval": {"mean_iou": 0.5, "pixel_accuracy": 0.625, "num_images": 16}})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_report(workdir / "report", 2)
    code, _, err = run("push", f"{workdir}@best", "ada/shapes", "--dry-run")
    assert code == 0
    assert [line.rpartition(", ")[0][:23] for line in err if line.startswith("score: mean_iou")] == [
        "score: mean_iou 0.7500,"
    ]
    assert not any(line.startswith("report/") for line in err)

    values = json.loads((workdir / "metrics.json").read_text()) | {"mean_iou": 0.78125, "step": 1}
    (workdir / "metrics-checkpoint=1.json").write_text(json.dumps(values))
    make_report(workdir / "report-checkpoint=1", 1)
    with sharing.prepare_upload(f"{workdir}@best", "ada/shapes") as upload:
        assert upload.files["report/report.html"].read_text() == "step 1"
        assert "| mean IoU | 0.7812 |" in upload.files["README.md"].read_text()
    with sharing.prepare_upload(workdir, "ada/shapes") as upload:
        assert upload.files["report/report.html"].read_text() == "step 2"
        assert {score.value for score in upload.provenance.scores} == {
            json.loads((workdir / "metrics.json").read_text())[metric] for metric in ("mean_iou", "pixel_accuracy")
        }
    make_report(workdir / "report", 1)
    with sharing.prepare_upload(workdir, "ada/shapes") as upload:
        assert not any(name.startswith("report/") for name in upload.files)


def make_report(folder, step):
    folder.mkdir(exist_ok=True)
    (folder / "report.html").write_text(f"step {step}")
    (folder / "scores.json").write_text(json.dumps({"step": step}))
