"""Registering data sets from modules outside the package."""

import contextlib
import importlib
import pathlib
import re
import sys

import numpy as np
import pytest

from deeplab_jax import data
from deeplab_jax.cli import main
from deeplab_jax.config import base_config
from deeplab_jax.data import registry
from deeplab_jax.data.check import check
from deeplab_jax.data.prepare import preparable_names, prepare
from deeplab_jax.errors import UserError
from tests.conftest import scene, write_index_png, write_jpeg

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "adding_datasets.md"

GENERATED = """
import numpy as np

from deeplab_jax import data
from deeplab_jax.labels import LabelSet


class Stripes:
    name, label_set = "stripes", LabelSet.from_names(("even", "odd"))

    def __init__(self, split, count, size):
        self.split, self.count, self.size = split, count, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = np.broadcast_to(np.arange(self.size[1]) // (index + 1) % 2, self.size).astype(np.uint8)
        return {"image": np.repeat(255 * label[..., None], 3, -1), "label": label, "id": f"{self.split}_{index}"}

    def ids(self):
        return [self[index]["id"] for index in range(self.count)]

    def largest_size(self):
        return self.size


def open_split(split, *, data_dir, num_examples, image_size):
    return Stripes(split, num_examples or 4, image_size or (16, 16))


data.register_dataset(data.Dataset(name="stripes", open_split=open_split, splits=("train", "val")))
"""


@pytest.fixture
def import_module(tmp_path, monkeypatch):
    """Imports source code as a module outside the package, and forgets its data sets afterwards."""
    monkeypatch.setattr(registry, "_datasets", dict(registry._datasets))
    monkeypatch.syspath_prepend(tmp_path)

    def import_source(name: str, source: str):
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return import_source


def make_street_scenes(root: pathlib.Path) -> pathlib.Path:
    """The layout of the example in docs/adding_datasets.md."""
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            image, label = scene(i, num_classes=3)
            write_jpeg(root / split / f"{split}_{i}.jpg", image)
            write_index_png(root / split / f"{split}_{i}_labels.png", np.where(label == 255, 3, label).astype(np.uint8))
    return root


def test_the_example_of_the_docs_is_prepared_checked_and_streamed(import_module, tmp_path, capsys):
    (source,) = re.findall(r"```python\n(# street_scenes\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    import_module("street_scenes", source)
    root, data_dir = make_street_scenes(tmp_path / "raw"), tmp_path / "data"
    assert "street_scenes" in data.dataset_names()
    assert "street_scenes" in preparable_names()
    assert check("street_scenes", source=root).ok
    with pytest.raises(SystemExit) as done:
        main.main(["data", "prepare", "street_scenes", "--source", str(root), "--data-dir", str(data_dir)])
    assert done.value.code == 0, capsys.readouterr().err
    assert check("street_scenes", data_dir=data_dir).ok
    config = base_config()
    config.data.update({"name": "street_scenes", "data_dir": str(data_dir), "batch_size": 3, "image_size": (40, 56)})
    source = data.open_split(config, "train")
    assert source.label_set.class_names == ("road", "car", "person")
    with contextlib.closing(data.train_batches(source, config.data, seed=0)) as batches:
        batch = next(batches)
    assert sorted(batch["id"]) == ["train_0", "train_1", "train_2"]
    assert set(np.unique(batch["label"])) <= {0, 1, 2, 255}
    assert (batch["label"] == 255).any()  # id 3 of the masks, "unlabeled"


def test_a_source_of_your_own_needs_no_preparation(import_module, tmp_path):
    import_module("stripes", GENERATED)
    assert "stripes" not in preparable_names()
    assert data.split_names("stripes") == ["train", "val"]
    config = base_config()
    config.data.update({"name": "stripes", "batch_size": 2, "image_size": (8, 12), "num_examples": 6})
    source = data.open_split(config, "train")
    assert len(source) == 6
    assert isinstance(source, data.Source)
    with contextlib.closing(data.train_batches(source, config.data, seed=0)) as batches:
        assert next(batches)["image"].shape == (2, 8, 12, 3)
    report = check("stripes")
    assert report.ok
    assert report.splits["val"].num_examples == 4
    with pytest.raises(UserError, match="stripes has no raw files, so there is nothing to prepare"):
        prepare("stripes", data_dir=tmp_path)
    with pytest.raises(UserError, match="^stripes has no split 'vall'; did you mean val"):
        data.open_split(config, "vall")


def test_a_name_can_be_registered_again_but_not_a_built_in_one(import_module):
    import_module("stripes", GENERATED)
    first = data.get_dataset("stripes")
    import_module("stripes", GENERATED)
    assert data.get_dataset("stripes") is not first
    with pytest.raises(UserError, match="data set 'camvid' is built in; choose another name"):
        data.register_dataset(data.Dataset(name="camvid", read_raw=lambda root: None))


def test_a_source_without_examples_is_refused():
    with pytest.raises(UserError, match=r"data\.num_examples is 0; it must be at least 1"):
        data.open_source("synthetic", "train", num_examples=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "My-Scenes", "read_raw": len}, "data set name 'My-Scenes' must be in snake case"),
        ({"name": "mine"}, "data set mine: give either read_raw or open_split"),
        ({"name": "mine", "read_raw": len, "open_split": len}, "data set mine: give either read_raw or open_split"),
        ({"name": "mine", "open_split": len}, "data set mine: splits must name the splits"),
    ],
)
def test_wrong_entries_are_rejected(fields, message):
    with pytest.raises(UserError, match=message):
        data.Dataset(**fields)
