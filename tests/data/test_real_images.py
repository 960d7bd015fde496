"""Real data sets in their published layouts, where they are available."""

import numpy as np

from deeplab_jax import data
from deeplab_jax.data.prepare import prepare


def test_camvid_is_prepared_completely(shared, tmp_path):
    prepare("camvid", source=shared / "data" / "camvid", data_dir=tmp_path)
    sizes = {split: len(data.open_source("camvid", split, data_dir=tmp_path)) for split in ("train", "val", "test")}
    assert sizes == {"train": 367, "val": 101, "test": 233}
    source = data.open_source("camvid", "val", data_dir=tmp_path)
    assert source.largest_size() == (360, 480)
    counts = np.zeros(256, np.int64)
    for image, label in data.decode_examples(source, range(0, 101, 10)):
        assert image.shape == (360, 480, 3)
        counts += np.bincount(label.ravel(), minlength=256)
    # Building and road fill street scenes; apart from the eleven classes there is only the ignore label.
    assert set(np.argsort(counts)[-2:]) == {1, 3}
    assert counts[11:255].sum() == 0
    assert counts[255] > 0


def test_voc_masks_read_as_indices(shared):
    raw = data.get_dataset("voc2012_segmentation").read_raw(shared / "data" / "voc_subset")
    assert {split: len(examples) for split, examples in raw.splits.items()} == {
        "train": 3174, "train_sbd": 1710, "train_voc": 1464, "val": 449,
    }  # fmt: skip
    seen = set()
    for example in raw.splits["val"][::20]:
        image, label = example.read(raw.label_set)
        assert image.startswith(b"\xff\xd8")  # a JPEG, unchanged
        seen |= set(np.unique(label).tolist())
    assert seen <= {*range(21), 255}
    assert {0, 15, 255} <= seen  # background, person, ignored borders
