"""`deeplab-jax data`."""

import json
import os

import pytest
from PIL import Image

from tests.data.formats import exports


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


def test_annotations_are_imported_and_masks_exported(run, fails, tmp_path):
    exports.make_coco(tmp_path / "export")
    photo = tmp_path / "export" / "images" / "b.jpg"
    exports.photo(photo)
    listed = tmp_path / "export" / "annotations" / "instances_default.json"
    values = json.loads(listed.read_text())
    values["images"].append({"id": 8, "file_name": "b.jpg"})
    values["annotations"].append({"id": 3, "image_id": 8, "category_id": 3, "segmentation": [[0, 0, 9, 0, 9, 9]]})
    values["annotations"].append({"id": 4, "image_id": 8, "category_id": 3, "segmentation": [[0, 0]]})
    listed.write_text(json.dumps(values))
    folder = tmp_path / "leaves"
    arguments = ("data", "import", "--from", "coco", listed, "--output", folder)
    code, out, err = run(*arguments)
    assert (code, out) == (0, "")
    assert err == [
        f"warning: 1 shapes are skipped: {listed}, annotation 4: it has 1 points; at least 3 are needed",
        f"Wrote 2 images with 3 shapes of 3 classes to {folder}; "
        f"next: deeplab-jax data prepare folder --source {folder}",
    ]
    fails(*arguments, message=f"{folder} exists")
    assert run("data", "prepare", "folder", "--source", folder, "--data-dir", tmp_path / "data").code == 0
    message = f"{tmp_path / 'export'} is an export of COCO; first run `deeplab-jax data import --from coco"
    fails("data", "prepare", "folder", "--source", tmp_path / "export", "--data-dir", tmp_path, message=message)
    arguments = ("data", "export", "--to", "cvat", folder / "images", folder / "masks")
    arguments += ("--classes", folder / "classes.txt", "--output", tmp_path / "to_correct")
    assert run(*arguments).err == [f"Wrote the annotations of 2 images to {tmp_path / 'to_correct'}"]
    assert (tmp_path / "to_correct" / "annotations.xml").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "--from", "coc", "a.json", "--output", "data"), "invalid choice: 'coc'"),
        (("export", "--to", "yolo", "a", "b", "--classes", "c", "--output", "d"), "invalid choice: 'yolo'"),
        (
            ("export", "--to", "coco", "a", "b", "--classes", "c", "--tolerance", "x", "--output", "d"),
            "'x' is not a number of pixels between 0 and 100",
        ),
    ],
)
def test_wrong_arguments_of_import_and_export(run, arguments, message):
    code, _, err = run("data", *arguments)
    assert code == 2
    assert message in err[0]
