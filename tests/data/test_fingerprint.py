"""The fingerprint of a data set: equal for equal data, and every difference that a training run depends on is named."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import data
from deeplab_jax.data.prepare import prepare
from tests.conftest import make_folder, write_jpeg


def opened(root, data_dir, split="train"):
    """A split of the folder's data set, prepared again."""
    shutil.rmtree(data_dir, ignore_errors=True)
    prepare("folder", source=root, data_dir=data_dir)
    return data.open_source("folder", split, data_dir=data_dir)


@pytest.fixture
def root(tmp_path):
    root = make_folder(tmp_path / "own")
    (root / "train.txt").write_text("".join(f"field_{i:03d}\n" for i in range(4)))
    (root / "val.txt").write_text("field_004\nfield_005\n")
    return root


def more_images(root):
    (root / "train.txt").write_text("".join(f"field_{i:03d}\n" for i in range(5)))
    (root / "val.txt").write_text("field_005\n")
    return "split train had 4 images and now has 5"


def another_order(root):
    (root / "train.txt").write_text("field_001\nfield_000\nfield_002\nfield_003\n")
    return "split train has images of other names, or in another order"


def another_mask(root):
    Image.fromarray(np.ones((40, 56), np.uint8)).save(root / "masks" / "field_002.png")
    return "images or masks of split train changed"


def another_image(root):
    write_jpeg(root / "images" / "field_002.jpg", np.zeros((40, 56, 3), np.uint8))
    return "images or masks of split train changed"


def swapped_classes(root):
    (root / "classes.txt").write_text("ground\nweed\ncrop\n")
    return "class 1 was crop and now is weed"


def more_classes(root):
    (root / "classes.txt").write_text("ground\ncrop\nweed\nsoil\n")
    return "it had 3 classes (ground, crop, weed) and now has 4 (ground, crop, weed, soil)"


def other_colors(root):
    """They only change how masks are drawn."""
    (root / "classes.txt").write_text("ground 0 0 0\ncrop 1 2 3\nweed 4 5 6\n")


@pytest.mark.parametrize(
    "change",
    [more_images, another_order, another_mask, another_image, swapped_classes, more_classes, other_colors],
)
def test_a_change_is_named(root, tmp_path, change):
    before = data.fingerprint(opened(root, tmp_path / "data"))
    assert data.describe_change(before, data.fingerprint(opened(root, tmp_path / "data"))) is None
    expected = change(root)
    now = json.loads(json.dumps(data.fingerprint(opened(root, tmp_path / "data"))))
    assert data.describe_change(before, now) == expected


def test_another_split_is_named(root, tmp_path):
    source = opened(root, tmp_path / "data")
    both = data.fingerprint(data.open_source("folder", "train+val", data_dir=tmp_path / "data"))
    assert list(both["splits"]) == ["train", "val"]
    assert data.describe_change(data.fingerprint(source), both) == "the split was train and now is train+val"


def test_data_that_an_older_version_prepared_has_a_fingerprint(root, tmp_path):
    now = data.fingerprint(opened(root, tmp_path / "data"))
    metadata = tmp_path / "data" / "folder" / "1.0.0" / "metadata.json"
    values = json.loads(metadata.read_text())
    del values["splits"]
    metadata.write_text(json.dumps(values))
    older = data.fingerprint(data.open_source("folder", "train", data_dir=tmp_path / "data"))
    assert data.describe_change(older, now) is None
    another_order(root)
    changed = data.fingerprint(opened(root, tmp_path / "data"))
    assert "order" in data.describe_change(older, changed)


def test_generated_data_has_a_fingerprint():
    few, more = (data.fingerprint(data.open_source("synthetic", "train", num_examples=count)) for count in (4, 5))
    assert data.describe_change(few, few) is None
    assert data.describe_change(few, more) == "split train had 4 images and now has 5"
