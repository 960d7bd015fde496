"""Real data sets in their publishers' layouts, where they are at hand."""

import numpy as np

from deeplab_jax import data
from deeplab_jax.data.prepare import prepare, read_raw


def test_camvid_is_prepared_whole(shared, tmp_path):
    prepare("camvid", source=shared / "data" / "camvid", data_dir=tmp_path)
    sizes = {split: len(data.open_source("camvid", split, data_dir=tmp_path)) for split in ("train", "val", "test")}
    assert sizes == {"train": 367, "val": 101, "test": 233}
    source = data.open_source("camvid", "val", data_dir=tmp_path)
    assert source.largest_size() == (360, 480)
    counts = np.zeros(256, np.int64)
    for image, label_map in data.decoded(source, range(0, 101, 10)):
        assert image.shape == (360, 480, 3)
        counts += np.bincount(label_map.ravel(), minlength=256)
    # Building and road fill street scenes; nothing is beyond the eleven classes but void.
    assert set(np.argsort(counts)[-2:]) == {1, 3}
    assert counts[11:255].sum() == 0
    assert counts[255] > 0


def test_voc_masks_read_as_indices(shared):
    layout = read_raw("voc2012_segmentation", shared / "data" / "voc_subset")
    assert {split: len(records) for split, records in layout.splits.items()} == {
        "train": 3174, "train_sbd": 1710, "train_voc": 1464, "val": 449,
    }  # fmt: skip
    seen = set()
    for record in layout.splits["val"][::20]:
        image, label_map = record.read(layout.label_set)
        assert image.startswith(b"\xff\xd8")  # a JPEG, kept as it is
        seen |= set(np.unique(label_map).tolist())
    assert seen <= {*range(21), 255}
    assert {0, 15, 255} <= seen  # background, person, void borders
