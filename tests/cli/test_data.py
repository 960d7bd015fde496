"""`deeplab-jax data`."""

import json
import os

import pytest
from PIL import Image


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "sbdd"), "data set 'sbdd' does not exist; did you mean sbd?"),
        (("prepare", "synthetic"), "synthetic has no raw files, so there is nothing to prepare"),
        (("prepare", "folder", "--source", "nowhere"), "nowhere does not exist"),
        (("prepare", "camvid"), "--source"),
    ],
)
def test_a_mistake_is_reported_in_one_line(fails, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails("data", *arguments, "--data-dir", "data", message=message)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_environment_names_the_data_folder(run, own_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "DEEPLAB_JAX_DATA", str(tmp_path / "elsewhere"))
    code, _, err = run("data", "prepare", "folder", "--source", own_folder)
    assert code == 0
    assert str(tmp_path / "elsewhere") in err[-1]
    assert (tmp_path / "elsewhere" / "folder").is_dir()


def test_a_data_set_is_checked_before_and_after_it_is_prepared(run, own_folder, tmp_path):
    code, out, _ = run("data", "check", "folder", "--source", own_folder)
    assert code == 0
    assert "weed" in out
    assert run("data", "prepare", "folder", "--source", own_folder, "--data-dir", tmp_path / "data").code == 0
    code, out, _ = run("data", "check", "folder", "--data-dir", tmp_path / "data", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["class_names"] == ["ground", "crop", "weed"]
    assert report["leaks"] == report["notes"] == []
    assert sum(split["num_examples"] for split in report["splits"].values()) == 6
    for split in report["splits"].values():
        assert sum(split["pixels"]) == split["num_examples"] * 40 * 56


def test_a_check_that_finds_problems_fails(run, own_folder):
    (own_folder / "masks" / "field_002.png").unlink()
    code, out, err = run("data", "check", "folder", "--source", own_folder)
    assert code == 1
    assert "field_002" in out
    assert err == ["deeplab-jax: folder has 1 invalid examples and 0 leaks; fix those listed above"]


def test_a_gallery_is_written_once(run, fails, tmp_path):
    arguments = ("data", "show", "synthetic", "--split", "val", "--count", "3", "--output", tmp_path / "val.png")
    code, _, err = run(*arguments)
    assert (code, err) == (0, [f"Wrote {tmp_path / 'val.png'}: 3 of 200 examples of synthetic/val"])
    with Image.open(tmp_path / "val.png") as image:
        assert min(image.size) > 100
    fails(*arguments, message="val.png exists")
