"""Prepared data sets are TFDS data sets: TFDS reads ours, and we read those that TFDS wrote."""

import io
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax import data
from deeplab_jax.data import masks, record_files, tf_example
from deeplab_jax.data.dataset import RawDataset, RawExample
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.prepared import PreparedSource, write_dataset
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet
from tests.conftest import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    return prepare("folder", source=make_folder(root / "own"), data_dir=root / "data")


def examples(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


def test_tfds_opens_a_prepared_data_set(folder):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder_from_directory(os.fspath(folder))
    assert (builder.name, str(builder.version)) == ("folder", "1.0.0")
    assert builder.info.metadata["class_names"] == ["ground", "crop", "weed"]
    undecoded = {name: tfds.decode.SkipDecoding() for name in ("image", "label")}
    for split in ("train", "val"):
        source = PreparedSource(folder, split)
        assert builder.info.splits[split].num_examples == len(source)
        stored = builder.as_data_source(split, decoders=undecoded)
        assert [example | {"id": example["id"].decode()} for example in stored] == examples(source)
    # By name, decoded: the way users of TFDS read it.
    decoded = tfds.data_source("folder", split="val", data_dir=os.fspath(folder.parents[1]))[0]
    expected = data.decode_example(PreparedSource(folder, "val")[0])
    np.testing.assert_array_equal(decoded["label"][..., 0], expected["label"])
    assert decoded["image"].shape == expected["image"].shape
    assert np.abs(decoded["image"].astype(int) - expected["image"]).max() <= 4  # another JPEG decoder


def test_a_data_set_written_by_tfds_opens(folder, tmp_path):
    """As versions up to 78d92dc wrote them."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Folder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                "id": tfds.features.Text(),
            }
            label_set = PreparedSource(folder, "train").label_set
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(
                    class_names=list(label_set.class_names), palette=[list(color) for color in label_set.palette]
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "val")}

        def _generate_examples(self, split):
            for i, example in enumerate(examples(PreparedSource(folder, split))):
                yield i, example | {name: io.BytesIO(example[name]) for name in ("image", "label")}

    Folder(data_dir=os.fspath(tmp_path), file_format="array_record").download_and_prepare()
    for split in ("train", "val", "train+val"):
        source, ours = (data.open_source("folder", split, data_dir=root) for root in (tmp_path, folder.parents[1]))
        assert source.label_set == ours.label_set
        assert examples(source) == examples(ours)
        assert source.largest_size() == ours.largest_size()


def test_large_splits_have_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "SHARD_BYTES", 1)
    folder = make_folder(tmp_path / "own", count=5)
    label_set = LabelSet.from_names(("a", "b", "c"))
    raw = [
        RawExample(path.stem, path, lambda path=path: masks.read_mask(folder / "masks" / f"{path.stem}.png", label_set))
        for path in sorted((folder / "images").iterdir())
    ]
    target = write_dataset("many", RawDataset(label_set, {"train": raw}), tmp_path / "data")
    assert len(list(target.glob("many-train.array_record-0000?-of-00005"))) == 5
    assert PreparedSource(target, "train").ids() == [example.id for example in raw]


@pytest.mark.parametrize("file", ["dataset_info.json", "metadata.json"])
@pytest.mark.parametrize("content", [None, b"{"])
def test_a_damaged_description_is_named(folder, tmp_path, file, content):
    target = tmp_path / "folder" / "1.0.0"
    target.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name != file:
            (target / path.name).write_bytes(path.read_bytes())
        elif content is not None:
            (target / file).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{file} is (missing|damaged: .*); remove .*1\.0\.0 and prepare the data set again"
    ):
        data.open_source("folder", "train", data_dir=tmp_path)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.binary(max_size=300), max_size=4))
def test_records_survive_serialization(features):
    assert tf_example.parse(tf_example.serialize(features)) == features


def test_a_truncated_record_is_an_error_or_lacks_features():
    record = tf_example.serialize({"image": b"x" * 200, "id": b"a"})
    assert tf_example.parse(b"") == {}
    for size in range(1, len(record)):
        with pytest.raises(ValueError, match=r"field|length|values to unpack"):
            tf_example.parse(record[:size])
