"""`data check`: counts equal a count by hand, every problem is named, and splits that share images are found."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deeplab_jax import progress
from deeplab_jax.data.check import check, report_tables
from deeplab_jax.data.dataset import RawExample
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC
from tests.conftest import make_folder, make_sbd, make_voc, write_index_png


def printed(report):
    console = Console(file=io.StringIO(), width=200)
    for table in report_tables(report):
        console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("raw", [False, True], ids=["prepared", "raw"])
def test_counts_equal_those_of_the_masks(tmp_path, raw):
    splits = {"train": ["a", "b", "c"], "val": ["d", "e"], "trainval": ["a", "b", "c", "d", "e"]}
    root = make_voc(tmp_path / "voc", splits)
    write_index_png(root / "SegmentationClass" / "d.png", np.full((50, 30), 20, np.uint8))
    Image.fromarray(np.zeros((50, 30, 3), np.uint8)).save(root / "JPEGImages" / "d.jpg")
    if raw:
        report = check("voc2012_segmentation", source=root)
    else:
        prepare("voc2012_segmentation", source=root, data_dir=tmp_path / "data")
        report = check("voc2012_segmentation", data_dir=tmp_path / "data")
    assert report.ok  # trainval contains val by construction
    assert set(report.splits) == set(splits)
    for split, ids in splits.items():
        found = report.splits[split]
        masks = [np.asarray(Image.open(root / "SegmentationClass" / f"{id}.png")) for id in ids]
        assert found.ids == ids
        assert found.num_examples == len(ids)
        assert found.pixels.dtype == np.int64
        for position, label in enumerate([*range(21), 255]):
            assert found.pixels[position] == sum((mask == label).sum() for mask in masks)
            assert found.images[position] == sum((mask == label).any() for mask in masks)
    assert report.splits["val"].smallest == (40, 30)
    assert report.splits["val"].largest == (50, 56)
    text = printed(report)
    assert "voc2012_segmentation/val: 2 examples" in text
    assert "40x30 to 50x56 (height x width)" in text
    tv_pixels = sum((np.asarray(Image.open(root / "SegmentationClass" / f"{id}.png")) == 20).sum() for id in "de")
    assert tv_pixels >= 1500
    assert re.search(rf"tvmonitor\s+│\s+{tv_pixels:,} │", text)
    assert "problems" not in text
    assert "leaks" not in text


def test_every_wrong_example_of_a_raw_folder_is_listed(tmp_path):
    root = make_folder(tmp_path / "own", count=8)
    (root / "train.txt").write_text("\n".join(f"field_{i:03d}" for i in range(7)) + "\nfield_006\n")
    (root / "val.txt").write_text("")
    wrong = np.zeros((40, 56), np.uint8)
    wrong[0, 0] = 77
    Image.fromarray(wrong).save(root / "masks" / "field_000.png")
    (root / "masks" / "field_001.png").unlink()
    image = root / "images" / "field_002.jpg"
    image.write_bytes(image.read_bytes()[:-100])
    Image.fromarray(np.zeros((40, 55), np.uint8)).save(root / "masks" / "field_003.png")
    mask = Image.open(root / "masks" / "field_004.png")
    mask.save(root / "masks" / "field_004.jpg")
    (root / "masks" / "field_004.png").unlink()
    report = check("folder", source=root)
    assert not report.ok
    expected = (
        r"mask .*field_000\.png contains label 77",
        r"field_001\.jpg has no mask",
        r"field_002\.jpg cannot be read",
        r"field_003\.jpg is 40x56 .* its mask is 40x55",
        r"field_004\.jpg is a JPEG",
        r"field_006 is listed 2 times",
    )
    problems = report.splits["train"].problems
    assert len(problems) == len(expected)
    for pattern, problem in zip(expected, problems, strict=True):
        assert re.search(pattern, problem)
        assert "\n" not in problem
    assert report.splits["val"].problems == ["split val is empty; check the list that names its images"]
    assert report.splits["train"].pixels.sum() == 3 * 40 * 56  # those that could be read
    text = printed(report)
    assert "problems: 7" in text
    assert "contains label 77" in text


def test_a_damaged_example_of_a_prepared_data_set_is_listed(tmp_path):
    folder = prepare("folder", source=make_folder(tmp_path / "own"), data_dir=tmp_path)
    assert check("folder", data_dir=tmp_path).ok
    (file,) = folder.glob("*train.array_record*")
    content = bytearray(file.read_bytes())
    content[content.find(b"\xff\xd8\xff") + 100] ^= 0xFF
    file.write_bytes(content)
    report = check("folder", data_dir=tmp_path)
    (problem,) = report.splits["train"].problems
    assert problem.startswith("example 0 of folder/train cannot be read")
    assert not report.splits["val"].problems


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.zeros((40, 55), np.uint8), r"image of field_\d+ is 40x56, but its mask is 40x55"),
        (np.full((40, 56), 77, np.uint8), r"mask of field_\d+ contains label 77"),
    ],
)
def test_wrong_examples_of_a_prepared_data_set_are_listed(tmp_path, monkeypatch, stored, message):
    """Another program, or an older version, may have written them."""
    monkeypatch.setattr(RawExample, "read", lambda self, label_set: (self.image.read_bytes(), stored))
    prepare("folder", source=make_folder(tmp_path / "own"), data_dir=tmp_path)
    report = check("folder", data_dir=tmp_path)
    problems = report.splits["train"].problems
    assert len(problems) == report.splits["train"].num_examples
    assert all(re.search(message, problem) for problem in problems)


@pytest.mark.parametrize(
    ("splits", "leaks"),
    [
        ({"train": ["a", "b", "c"], "val": ["b", "d"]}, [r"train and .*/val share 1 image: b"]),
        ({"train": ["a"], "test": ["a"], "val": ["b"]}, [r"train and .*/test share 1"]),
        ({"train": ["a"], "train_extra": ["a", "b"], "val": ["b"]}, [r"train_extra and .*/val share 1"]),
        ({"train": ["a", "b"], "train_noval": ["b"], "val": ["b"]}, [r"train and .*/val", r"train_noval and .*/val"]),
        ({"train": ["a"], "trainval": ["a", "b"], "train_val": ["a", "b"], "val": ["b"], "train_voc": ["a"]}, []),
    ],
)
def test_splits_that_share_images_are_named(tmp_path, splits, leaks):
    report = check("voc2012_segmentation", source=make_voc(tmp_path / "voc", splits))
    assert report.ok == (not leaks)
    assert len(report.leaks) == len(leaks)
    for pattern, leak in zip(leaks, report.leaks, strict=True):
        assert re.search(pattern, leak)


def test_a_leak_names_a_few_and_counts_all(tmp_path):
    ids = [f"image_{i}" for i in range(9)]
    report = check("voc2012_segmentation", source=make_voc(tmp_path / "voc", {"train": ids, "val": ids}))
    (leak,) = report.leaks
    assert leak.count("image_") == 5
    assert "share 9 images" in leak
    assert "leaks: 1" in printed(report)


def test_sbd_training_images_in_voc_val_are_named(tmp_path):
    raw_sbd = make_sbd(tmp_path / "sbd", {"train": ["a", "b", "e"], "val": ["c"], "train_noval": ["e"]})
    prepare("sbd", source=raw_sbd, data_dir=tmp_path / "data")
    assert check("sbd", data_dir=tmp_path / "data").ok
    voc = make_voc(tmp_path / "voc", {"train": ["c"], "val": ["a", "b"]})
    prepare("voc2012_segmentation", source=voc, sbd_source=raw_sbd, data_dir=tmp_path / "data")
    for name in ("sbd", "voc2012_segmentation"):
        report = check(name, data_dir=tmp_path / "data")
        (leak,) = report.leaks
        assert not report.ok
        assert "sbd/train and voc2012_segmentation/val share 2 images: a, b" in leak
        assert "train_noval" in leak


def test_a_sample_of_synthetic_is_checked():
    report = check("synthetic")
    assert report.ok
    assert set(report.splits) == {"train", "val"}
    for found in report.splits.values():
        assert len(found.pixels) == SYNTHETIC.num_classes + 1
        assert found.pixels.sum() == found.num_examples * 96 * 96
        assert found.images.min() > 0
        assert found.smallest == found.largest == (96, 96)


def test_a_data_set_that_cannot_be_checked_is_named(tmp_path):
    with pytest.raises(UserError, match="sbd is not prepared in"):
        check("sbd", data_dir=tmp_path)
    with pytest.raises(UserError, match="'sdb' does not exist; did you mean sbd?"):
        check("sdb", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"--source .*gone does not exist"):
        check("sbd", source=tmp_path / "gone")
    with pytest.raises(UserError, match="does not have SBD's layout"):
        check("sbd", source=tmp_path)


def test_progress_is_shown(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    progress.show_on(console)
    try:
        check("folder", source=make_folder(tmp_path / "own"))
    finally:
        progress.show_on(None)
    assert "check train" in console.file.getvalue()
    assert "check val" in console.file.getvalue()
