"""Files: which images are predicted, where results go, and that nothing is lost when one image or one run fails."""

import logging
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.errors import UserError
from deeplab_jax.inference import files
from deeplab_jax.inference.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(trained) -> Predictor:
    return Predictor.from_pretrained(trained, size=(33, 33))


def draw(folder: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return folder


def tree(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---- Which images ----


def test_images_are_found_in_order_and_once(tmp_path):
    draw(tmp_path, "b.png", "a.JPG", "later/c.png")
    found = files.find_images([tmp_path / "b.png", tmp_path, tmp_path / "later" / ".." / "a.JPG"])
    assert {path.relative_to(tmp_path).as_posix(): name.as_posix() for path, name in found.items()} == {
        "b.png": "b.png",
        "a.JPG": "a.JPG",
        "later/c.png": "later/c.png",
    }
    assert list(found)[0] == tmp_path / "b.png"


def test_a_folder_without_images_says_what_it_has(tmp_path):
    (tmp_path / "photo.jp2").touch()
    with pytest.raises(UserError, match=r"^folder .* contains no images \(.jpg, .*\): 1 .jp2 file \(photo.jp2\)$"):
        files.find_images([tmp_path])
    with pytest.raises(UserError, match="^.*none.jpg does not exist$"):
        files.find_images([tmp_path / "none.jpg"])


def test_what_is_left_out_of_a_folder_is_listed(tmp_path, caplog):
    draw(tmp_path, "a.png")
    for name in ("b.jp2", "c.JP2", "deep/notes.txt", "._a.png", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING, "deeplab_jax"):
        assert list(files.find_images([tmp_path])) == [tmp_path / "a.png"]
    assert [record.getMessage() for record in caplog.records] == [
        f"not predicted in {tmp_path}, because they are not images: 2 .jp2 files (b.jp2, c.JP2) and 1 .txt file "
        "(notes.txt)"
    ]


# ---- Where results go ----


def test_subfolders_are_mirrored(predictor, tmp_path):
    draw(tmp_path / "in", "monday/a.jpg", "tuesday/a.jpg", "a.jpg")
    written = files.predict_files(predictor, [tmp_path / "in"], tmp_path / "out")
    assert tree(tmp_path / "out") == [
        "a_mask.png", "a_overlay.png", "monday/a_mask.png", "monday/a_overlay.png", "tuesday/a_mask.png",
        "tuesday/a_overlay.png",
    ]  # fmt: skip
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in written) == tree(tmp_path / "out")


def test_images_that_differ_in_their_suffix_keep_it(tmp_path):
    draw(tmp_path / "in", "a.jpg", "a.png", "b.png")
    paths = files.result_paths([tmp_path / "in"], tmp_path / "out")
    assert [mask.name for mask, _ in paths.values()] == ["a.jpg_mask.png", "a.png_mask.png", "b_mask.png"]


def test_images_of_the_same_name_are_refused_and_both_named(predictor, tmp_path):
    draw(tmp_path, "one/a.png", "two/a.png")
    one, two = tmp_path / "one", tmp_path / "two" / "a.png"
    message = f"^the results of {one / 'a.png'} and {two} would have the same names; predict"
    with pytest.raises(UserError, match=message):
        files.predict_files(predictor, [one, two], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_output_folder_is_not_an_input(tmp_path):
    draw(tmp_path, "a.png", "masks/a_mask.png", "masks/monday/a_mask.png")
    paths = files.result_paths([tmp_path], tmp_path / "masks", existing="overwrite")
    assert list(paths) == [tmp_path / "a.png"]
    with pytest.raises(UserError, match="is also an input, so results would be predicted next time"):
        files.result_paths([tmp_path / "masks"], tmp_path / "masks" / "monday" / "..")


def test_results_may_go_to_a_folder_that_contains_the_input(tmp_path):
    draw(tmp_path, "holiday/a.png", "holiday/sub/b.png")
    paths = files.result_paths([tmp_path / "holiday"], tmp_path)
    assert [pair[0] for pair in paths.values()] == [tmp_path / "a_mask.png", tmp_path / "sub" / "b_mask.png"]


def test_an_input_is_never_replaced(tmp_path):
    draw(tmp_path, "a.png", "a_mask.png")
    inputs = [tmp_path / "a.png", tmp_path / "a_mask.png"]
    with pytest.raises(UserError, match=r"the result of .*a\.png would replace the input .*a_mask\.png"):
        files.result_paths(inputs, tmp_path, existing="overwrite")


# ---- Results that exist ----


def test_existing_results_are_refused_before_any_work(predictor, tmp_path):
    draw(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b_overlay.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"b_overlay.png exists; use --skip-existing to .*, --overwrite, or another"):
        files.predict_files(predictor, [tmp_path / "in"], tmp_path / "out")
    assert tree(tmp_path / "out") == ["b_overlay.png"]
    assert (tmp_path / "out" / "b_overlay.png").read_bytes() == b"mine"


def test_existing_results_are_skipped_if_complete(predictor, tmp_path):
    draw(tmp_path / "in", "a.png", "b.png", "c.png")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a_mask.png", "a_overlay.png", "b_mask.png"):
        (out / name).write_bytes(b"mine")
    written = files.predict_files(predictor, [tmp_path / "in"], out, existing="skip")
    assert [path.name for path in written] == ["b_mask.png", "b_overlay.png", "c_mask.png", "c_overlay.png"]
    assert (out / "a_mask.png").read_bytes() == b"mine"
    assert (out / "b_mask.png").read_bytes() != b"mine"


def test_existing_results_are_replaced(predictor, tmp_path):
    draw(tmp_path / "in", "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_mask.png").write_bytes(b"mine")
    files.predict_files(predictor, [tmp_path / "in"], tmp_path / "out", existing="overwrite")
    with Image.open(tmp_path / "out" / "a_mask.png") as mask:
        assert mask.size == (30, 20)


# ---- Images that cannot be read ----


@pytest.fixture
def damaged(tmp_path) -> pathlib.Path:
    """Three images in a folder, of which `b.jpg` is cut off."""
    folder = draw(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:300])
    return folder


def test_one_damaged_image_does_not_stop_the_others(predictor, damaged, tmp_path, caplog):
    bad = damaged / "b.jpg"
    with pytest.raises(UserError, match=rf"^1 of 3 inputs failed \({bad}\): image {bad} cannot be read"):
        files.predict_files(predictor, [damaged], tmp_path / "out")
    assert tree(tmp_path / "out") == ["a_mask.png", "a_overlay.png", "c_mask.png", "c_overlay.png"]
    assert "b.jpg cannot be read" in caplog.text
    draw(damaged, "b.jpg")
    files.predict_files(predictor, [damaged], tmp_path / "out", existing="skip")
    assert len(tree(tmp_path / "out")) == 6


def test_a_single_damaged_image_is_the_message(predictor, damaged, tmp_path):
    with pytest.raises(UserError, match=rf"^image {damaged / 'b.jpg'} cannot be read"):
        files.predict_files(predictor, [damaged / "b.jpg"], tmp_path / "out")
    assert tree(tmp_path / "out") == []


def test_a_result_that_cannot_be_written_ends_the_prediction(predictor, tmp_path, monkeypatch):
    draw(tmp_path / "in", "a.png", "b.png")

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"^cannot write .*a_mask\.png: No space left on device"):
        files.predict_files(predictor, [tmp_path / "in"], tmp_path / "out")


def test_the_range_and_the_limit_reach_the_images(predictor, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(path)
    with pytest.raises(UserError, match="--value-range=0,1023"):
        files.predict_files(predictor, [path], tmp_path / "out")
    with pytest.raises(UserError, match="more than .* million"):
        files.predict_files(predictor, [path], tmp_path / "out", max_pixels=599)
    files.predict_files(predictor, [path], tmp_path / "out", value_range=(0, 1023), max_pixels=600)
    assert tree(tmp_path / "out") == ["a_mask.png", "a_overlay.png"]
