"""`deeplab-jax papers`."""

import dataclasses
import json
import shlex

import pytest

from deeplab_jax import papers
from deeplab_jax.papers import rows as rows_lib
from deeplab_jax.pretrained import bundle, load
from tests.conftest import TINY_ARGUMENTS, TINY_VALUES


@pytest.fixture
def tiny_row(monkeypatch):
    """A row whose network trains in two steps; it takes the place of `v3-6-os8`."""
    row = papers.Row(
        id="tiny", paper="v3", table="1", title="Tiny", name="tiny", config=TINY_ARGUMENTS, train=TINY_VALUES,
        evaluate={"eval.flip": True}, published={"mean_iou": 50.0, "pixel_accuracy": 60.0}, images=100, source="a test",
    )  # fmt: skip
    monkeypatch.setattr(rows_lib, "_load_rows", lambda: {"tiny": row})
    return row


def test_a_table_is_listed(run):
    code, out, err = run("papers", "list", "--paper", "v3plus", "--table", "3")
    assert (code, err) == (0, [])
    assert "v3plus-3-16-16-decoder" in out
    assert "101.28 G" in out
    values = json.loads(run("papers", "list", "--paper", "v3plus", "--table", "3", "--json").out)
    assert [value["id"] for value in values] == [row.id for row in papers.list_rows("v3plus", "3")]
    assert values[0]["published"] == {"mean_iou": 77.21}
    assert values[0]["state"] == "runs"


def test_states_filter_the_list(run, fails):
    values = json.loads(run("papers", "list", "--state", "cannot", "--json").out)
    assert {value["state"] for value in values} == {"cannot"}
    assert all(value["cannot"] for value in values)
    fails("papers", "list", "--state", "run", message="state 'run' does not exist; did you mean runs?")
    fails("papers", "list", "--paper", "v3plu", message="paper 'v3plu' does not exist; did you mean v3plus?")


def test_a_row_is_shown_with_its_commands(run, fails):
    code, out, err = run("papers", "show", "zoo-voc-mobilenet-v2")
    assert (code, err) == (0, [])
    assert "mean IoU 75.32 %" in out
    assert "published: 2.75 G" in out
    lines = out.replace("\\\n", " ").replace("\u00a0", " ").splitlines()
    commands = [" ".join(line.split()) for line in lines if line.startswith("deeplab-jax")]
    assert commands[: len(papers.row_commands(papers.find_row("zoo-voc-mobilenet-v2")))] == [
        " ".join(command.split()) for command in papers.row_commands(papers.find_row("zoo-voc-mobilenet-v2"))
    ]
    assert commands[-1] == "deeplab-jax papers verify zoo-voc-mobilenet-v2"
    values = json.loads(run("papers", "show", "zoo-voc-mobilenet-v2", "--json").out)
    assert values["commands"] == papers.row_commands(papers.find_row("zoo-voc-mobilenet-v2"))
    fails("papers", "show", "v3-6-os9", message="row 'v3-6-os9' does not exist; did you mean v3-6-os8")


@pytest.mark.slow  # a training
def test_a_row_is_trained_and_compared(run, tiny_row, tmp_path):
    arguments = ("papers", "run", "tiny", "--workdir", tmp_path / "run", "--config.eval.batch_size=4")
    code, out, err = run(*arguments, "--json", tmp_path / "scores.json")
    assert code == 0, err
    values = json.loads((tmp_path / "scores.json").read_text())
    own = json.loads((tmp_path / "run" / "metrics-eval.flip=True.json").read_text())
    iou, accuracy = values["scores"]
    assert iou["measured"] == pytest.approx(100 * own["mean_iou"])
    assert iou["difference"] == pytest.approx(iou["measured"] - 50)
    assert accuracy["metric"] == "pixel_accuracy"
    assert (values["images"], values["published_images"]) == (200, 100)
    assert own["config"]["eval"]["batch_size"] == 4
    assert "measured on 200 images; the published ones are of 100" in out
    # A finished run is only evaluated.
    again = json.loads(run(*arguments, "--json").out)
    assert again == values


def test_weights_are_evaluated_under_the_protocol_of_a_row(run, fails, tiny_row, trained, tmp_path):
    bundle.save(load(trained), tmp_path / "net")
    arguments = ("papers", "verify", "tiny", "--preset", tmp_path / "net", "--config.mesh.data=1")
    fails("papers", "verify", "tiny", message="row tiny has no public weights; train it with `deeplab-jax papers run")
    code, out, err = run(*arguments, "--json", tmp_path / "scores.json", "--report", tmp_path / "report")
    assert code == 0, err
    reported = json.loads((tmp_path / "report" / "scores.json").read_text())
    assert "mean_boundary_iou" in reported
    assert (tmp_path / "report" / "report.html").is_file()
    (score, _) = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert "difference" in out
    assert score["measured"] == pytest.approx(100 * reported["mean_iou"])
    assert abs(score["difference"]) < 50
    assert run(*arguments, "--tolerance", "50").code == 0
    code, _, err = run(*arguments, "--tolerance", "0.001")
    assert code == 1
    assert err[-1].startswith("deeplab-jax: the mean IoU differs from the published one by -")
    assert run(*arguments, "--tolerance", "-1").code == 2


def test_rows_that_cannot_run_say_why(fails, tiny_row, monkeypatch, tmp_path):
    rows = {
        "private": dataclasses.replace(tiny_row, id="private", cannot="its data are private", weights="a"),
        "unpublished": dataclasses.replace(tiny_row, id="unpublished", pretraining="weights of theirs"),
    }
    monkeypatch.setattr(rows_lib, "_load_rows", lambda: rows)
    workdir = ("--workdir", tmp_path / "run")
    fails("papers", "run", "private", *workdir, message="row private cannot be reproduced: its data are private")
    fails("papers", "verify", "private", message="row private cannot be reproduced: its data are private")
    fails(
        "papers", "run", "unpublished", *workdir,
        message="weights that nobody publishes (weights of theirs); give your own with --config.train.init_from=FOLDER",
    )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_missing_data_are_found_before_the_training(fails, tmp_path):
    arguments = ("--workdir", tmp_path / "run", "--data-dir", tmp_path)
    fails(
        "papers",
        "run",
        "v3-6-os8",
        *arguments,
        message="row v3-6-os8 needs voc2012_segmentation, which is not prepared; run",
    )
    assert not (tmp_path / "run").exists()


def test_a_row_has_its_own_config(run, tmp_path):
    code, _, err = run(*shlex.split("papers run v3-6-os8 --config quickstart --workdir"), tmp_path / "run")
    assert code == 2
    assert "row v3-6-os8 has its own config; change its fields with --config.GROUP.FIELD=VALUE" in err[0]
    usage = run("papers", "run", "--help").out.partition("\n\n")[0]
    assert usage.splitlines()[-1].strip() == "[--config.GROUP.FIELD=VALUE ...]"
