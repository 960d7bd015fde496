"""From raw folders and archives to prepared data sets: exact, complete or not at all, mistakes are named."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image

from deeplab_jax import data
from deeplab_jax.data.dataset import RawExample
from deeplab_jax.data.prepare import open_raw, prepare
from deeplab_jax.data.sources import folder as folder_source
from deeplab_jax.data.sources import sbd
from deeplab_jax.errors import UserError
from deeplab_jax.labels import CAMVID, VOC
from tests.conftest import make_camvid, make_folder, make_sbd, make_voc, write_index_png, write_sbd_mat
from tests.support.preparation import assert_nothing_left


def read_split(name, split, data_dir):
    """Image and label by id, in the order of the split."""
    source = data.open_source(name, split, data_dir=data_dir)
    examples = [data.decode_example(source[i]) for i in range(len(source))]
    return {example["id"]: (example["image"], example["label"]) for example in examples}


def jpeg_pixels(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def pack(folder, path, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        tar.add(folder, arcname=folder.name)
    return path


# Exactness


def test_every_label_survives_a_prepared_data_set(tmp_path):
    label = np.resize(np.array([*range(21), 255], np.uint8), (40, 56))
    root = make_voc(tmp_path / "voc", {"train": ["a"], "val": ["b"]})
    write_index_png(root / "SegmentationClass" / "a.png", label)
    prepare("voc2012_segmentation", source=root, data_dir=tmp_path / "data")
    stored = read_split("voc2012_segmentation", "train", tmp_path / "data")["a"][1]
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, label)
    assert set(np.unique(stored)) == {*range(21), 255}


def test_voc_has_a_split_for_every_list(tmp_path):
    splits = {"train": ["b", "a"], "val": ["c"], "trainval": ["b", "a", "c"], "five_of_them": ["c", "a"]}
    root = make_voc(tmp_path / "VOCdevkit" / "VOC2012", splits)
    prepare("voc2012_segmentation", source=tmp_path / "VOCdevkit", data_dir=tmp_path / "data")
    assert set(data.split_names("voc2012_segmentation", data_dir=tmp_path / "data")) == set(splits)
    for split, ids in splits.items():
        examples = read_split("voc2012_segmentation", split, tmp_path / "data")
        assert list(examples) == ids  # in the order of the list
        for id, (image, label) in examples.items():
            np.testing.assert_array_equal(image, jpeg_pixels(root / "JPEGImages" / f"{id}.jpg"))
            palette_png = np.asarray(Image.open(root / "SegmentationClass" / f"{id}.png"))
            np.testing.assert_array_equal(label, palette_png)


def test_trainaug_is_set_algebra_and_prefers_voc_masks(tmp_path):
    voc = make_voc(tmp_path / "voc", {"train": ["a", "b"], "val": ["c"]})
    raw_sbd = make_sbd(tmp_path / "sbd", {"train": ["b", "c", "e"], "val": ["a", "d"]})
    dataset = raw_sbd / "benchmark_RELEASE" / "dataset"
    for id in "abcde":
        write_sbd_mat(dataset / "cls" / f"{id}.mat", np.full((40, 56), 9, np.uint8))
    prepare("voc2012_segmentation", source=voc, sbd_source=raw_sbd, data_dir=tmp_path / "data")
    trainaug = read_split("voc2012_segmentation", "trainaug", tmp_path / "data")
    assert list(trainaug) == ["a", "b", "d", "e"]  # without c, which is in val
    assert list(read_split("voc2012_segmentation", "train", tmp_path / "data")) == ["a", "b"]
    for id in "ab":  # both have a mask for it
        mask = np.asarray(Image.open(voc / "SegmentationClass" / f"{id}.png"))
        np.testing.assert_array_equal(trainaug[id][1], mask)
    for id in "de":
        assert (trainaug[id][1] == 9).all()
        np.testing.assert_array_equal(trainaug[id][0], jpeg_pixels(dataset / "img" / f"{id}.jpg"))


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_sbd_from_a_folder_and_from_its_archive(sbd_folder, tmp_path, packed):
    dataset = sbd_folder / "benchmark_RELEASE" / "dataset"
    (dataset / "train_noval.txt").write_text("2008_000003\n")
    (dataset / "inst").mkdir()
    (dataset / "inst" / "2008_000002.mat").write_text("not needed")
    source = pack(sbd_folder / "benchmark_RELEASE", tmp_path / "benchmark.tgz") if packed else sbd_folder
    prepare("sbd", source=source, data_dir=tmp_path / "data")
    for split, ids in {
        "train": ["2008_000002", "2008_000003", "2008_000007"],
        "val": ["2008_000008", "2008_000009"],
        "train_noval": ["2008_000003"],
    }.items():
        examples = read_split("sbd", split, tmp_path / "data")
        assert list(examples) == ids
        for id, (image, label) in examples.items():
            np.testing.assert_array_equal(image, jpeg_pixels(dataset / "img" / f"{id}.jpg"))
            mat = scipy.io.loadmat(dataset / "cls" / f"{id}.mat")["GTcls"]["Segmentation"][0, 0]
            np.testing.assert_array_equal(label, mat)
    assert data.open_source("sbd", "val", data_dir=tmp_path / "data").label_set == VOC
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"sbd"}  # nothing unpacked stays


def test_unlabeled_pixels_of_camvid_are_ignored(camvid_folder, tmp_path):
    prepare("camvid", source=camvid_folder, data_dir=tmp_path / "data")
    assert data.open_source("camvid", "val", data_dir=tmp_path / "data").label_set == CAMVID
    for split in ("train", "val", "test"):
        examples = read_split("camvid", split, tmp_path / "data")
        assert len(examples) == 2
        for id, (_, label) in examples.items():
            raw = np.asarray(Image.open(camvid_folder / f"{split}annot" / f"{id}.png"))
            assert (raw == 11).any()
            np.testing.assert_array_equal(label, np.where(raw == 11, 255, raw))


def test_several_splits_are_read_as_one(camvid_folder, tmp_path):
    prepare("camvid", source=camvid_folder, data_dir=tmp_path)
    parts = [data.open_source("camvid", split, data_dir=tmp_path) for split in ("val", "train")]
    both = data.open_source("camvid", "val+train", data_dir=tmp_path)
    assert [both[i] for i in range(len(both))] == [part[i] for part in parts for i in range(len(part))]
    with pytest.raises(UserError, match="has no split 'vall'; did you mean val?"):
        data.open_source("camvid", "train+vall", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"'val\+train\+val' names a split twice$"):
        data.open_source("camvid", "val+train+val", data_dir=tmp_path)


def test_camvid_lists_of_paths_as_segnet_wrote_them(tmp_path):
    root = make_camvid(tmp_path / "camvid")
    for split in ("train", "val", "test"):
        listing = root / f"{split}.txt"
        names = listing.read_text().split()
        listing.write_text("\n".join(f"/S/{split}/{name}.png /S/{split}annot/{name}.png" for name in names) + "\n")
    with open_raw("camvid", root) as (raw, _):
        listed = [example.id for example in raw.splits["val"]]
    assert listed == ["0001TP_000000", "0001TP_000001"]


# Your own folder


def test_a_folder_of_index_masks(own_folder, tmp_path):
    prepare("folder", source=own_folder, data_dir=tmp_path / "data")
    labels = data.open_source("folder", "train", data_dir=tmp_path / "data").label_set
    assert labels.class_names == ("ground", "crop", "weed")
    splits = {split: read_split("folder", split, tmp_path / "data") for split in ("train", "val")}
    both = {**splits["train"], **splits["val"]}
    assert len(splits["train"]) + len(splits["val"]) == len(both) == 6
    for id, (image, label) in both.items():
        np.testing.assert_array_equal(label, np.asarray(Image.open(own_folder / "masks" / f"{id}.png")))
        np.testing.assert_array_equal(image, jpeg_pixels(own_folder / "images" / f"{id}.jpg"))


def test_a_folder_of_color_masks(tmp_path):
    root = make_folder(tmp_path / "own", count=2, classes="ground 0 0 0\ncrop 0 200 0\ntall weed 200 0 0\n")
    palette = np.zeros((256, 3), np.uint8)
    palette[1], palette[2], palette[255] = (0, 200, 0), (200, 0, 0), (224, 224, 192)
    raw = {}
    for path in (root / "masks").iterdir():
        raw[path.stem] = np.asarray(Image.open(path))
        Image.fromarray(palette[raw[path.stem]]).save(path)
    prepare("folder", source=root, data_dir=tmp_path / "data")
    source = data.open_source("folder", "train", data_dir=tmp_path / "data")
    assert source.label_set.class_names == ("ground", "crop", "tall weed")
    assert source.label_set.palette == ((0, 0, 0), (0, 200, 0), (200, 0, 0))
    for split in ("train", "val"):
        for id, (_, label) in read_split("folder", split, tmp_path / "data").items():
            np.testing.assert_array_equal(label, raw[id])


def test_lists_in_a_folder_are_its_splits(own_folder, tmp_path):
    (own_folder / "train.txt").write_text("field_003\nfield_001.jpg\n")
    (own_folder / "test.txt").write_text("field_000\n")
    prepare("folder", source=own_folder, data_dir=tmp_path / "data")
    assert set(data.split_names("folder", data_dir=tmp_path / "data")) == {"train", "test"}
    assert list(read_split("folder", "train", tmp_path / "data")) == ["field_003", "field_001"]


def split_of(root, **options):
    raw = folder_source.read_raw(root, **options)
    return {example.id: split for split, examples in raw.splits.items() for example in examples}


def test_the_split_of_an_image_depends_on_its_name(tmp_path):
    root = make_folder(tmp_path / "own", count=1)
    image, mask = (root / "images" / "field_000.jpg"), (root / "masks" / "field_000.png")
    for i in range(1, 60):
        shutil.copy(image, root / "images" / f"field_{i:03d}.jpg")
        shutil.copy(mask, root / "masks" / f"field_{i:03d}.png")
    before = split_of(root)
    # 60 names at one in five: 12, and 3 to 24 is beyond three standard deviations (3.1) either way.
    assert 3 <= list(before.values()).count("val") <= 24
    assert before == split_of(root)
    shutil.copy(image, root / "images" / "another.jpg")
    after = split_of(root)
    assert sum(before[id] != after[id] for id in before) <= 1  # only the image that filled an empty split may move
    assert list(split_of(root, val_fraction=0.5).values()).count("val") > list(before.values()).count("val")


@pytest.mark.parametrize("count", [2, 3])
def test_both_splits_of_a_small_folder_have_images(tmp_path, count):
    for seed in range(8):
        root = make_folder(tmp_path / f"own{seed}", count=count)
        for path in [*(root / "images").iterdir(), *(root / "masks").iterdir()]:
            path.rename(path.with_name(f"{seed}_{path.name}"))
        assert set(split_of(root).values()) == {"train", "val"}


# Once, and completely


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_does_nothing(own_folder, tmp_path):
    target = prepare("folder", source=own_folder, data_dir=tmp_path / "data")
    before = contents(tmp_path / "data")
    shutil.rmtree(own_folder)  # not even the source is read
    assert prepare("folder", source=own_folder, data_dir=tmp_path / "data") == target
    assert contents(tmp_path / "data") == before


@pytest.mark.parametrize("missing", ["metadata.json", "folder-val.array_record-00000-of-00001"])
def test_an_incomplete_copy_is_not_a_prepared_data_set(own_folder, tmp_path, missing):
    target = prepare("folder", source=own_folder, data_dir=tmp_path / "data")
    (target / missing).unlink()
    with pytest.raises(UserError, match=r"1\.0\.0 is incomplete, .*; remove it and prepare folder again"):
        prepare("folder", source=own_folder, data_dir=tmp_path / "data")


def test_an_interrupted_run_leaves_nothing(own_folder, tmp_path, monkeypatch):
    read, calls = RawExample.read, []

    def interrupted(self, label_set):
        calls.append(self.id)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(self, label_set)

    with monkeypatch.context() as patch:
        patch.setattr(RawExample, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare("folder", source=own_folder, data_dir=tmp_path / "data")
    assert_nothing_left("folder", tmp_path / "data")
    prepare("folder", source=own_folder, data_dir=tmp_path / "data")
    assert len(read_split("folder", "train", tmp_path / "data")) > 0


def test_a_killed_run_leaves_no_prepared_data_set(sbd_folder, tmp_path):
    archive = pack(sbd_folder / "benchmark_RELEASE", tmp_path / "benchmark.tgz")
    script = """
        import os, pathlib, signal, sys
        from deeplab_jax.data import dataset, prepare

        read, calls = dataset.RawExample.read, []

        def killed(self, label_set):
            calls.append(self.id)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(self, label_set)

        dataset.RawExample.read = killed
        prepare.prepare("sbd", source=pathlib.Path(sys.argv[1]), data_dir=pathlib.Path(sys.argv[2]))
    """
    data_dir = tmp_path / "data"
    command = [sys.executable, "-c", textwrap.dedent(script), str(archive), str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [path for path in data_dir.rglob("*") if path.is_file()]
    assert left  # it was killed in the middle
    with pytest.raises(UserError, match="sbd is not prepared"):
        data.open_source("sbd", "train", data_dir=data_dir)
    prepare("sbd", source=archive, data_dir=data_dir)
    assert len(read_split("sbd", "train", data_dir)) == 3
    assert [path.name for path in data_dir.iterdir()] == ["sbd"]
    assert [path.name for path in (data_dir / "sbd").iterdir()] == ["1.0.0"]


def test_sbd_is_downloaded_from_its_publisher(sbd_folder, tmp_path, monkeypatch):
    """The addresses and checksums of the registry are used, and train_noval ends up next to the other lists."""
    archive = pack(sbd_folder / "benchmark_RELEASE", tmp_path / "packed.tgz")
    fetched = []

    def download(url, path, *, digest, otherwise):
        fetched.append((url, digest))
        path.parent.mkdir(parents=True, exist_ok=True)
        if url == sbd.ARCHIVE.url:
            shutil.copy(archive, path)
        else:
            path.write_text("2008_000007\n")

    monkeypatch.setattr("deeplab_jax.data.prepare.download", download)
    prepare("sbd", data_dir=tmp_path / "data")
    assert fetched == [(file.url, file.digest) for file in (sbd.ARCHIVE, sbd.TRAIN_NOVAL)]
    assert list(read_split("sbd", "train_noval", tmp_path / "data")) == ["2008_000007"]


def test_neither_tensorflow_nor_tfds_nor_torch_is_imported(own_folder, tmp_path):
    script = """
        import importlib.machinery, pathlib, sys

        class Refuse:  # both look installed, and importing them fails
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("tensorflow", "tensorflow_datasets", "torch"):
                    return importlib.machinery.ModuleSpec(name, self)

            def create_module(self, spec):
                raise AssertionError(f"{spec.name} is imported")

            def exec_module(self, module):
                pass

        sys.meta_path.insert(0, Refuse())
        import contextlib
        from deeplab_jax import data
        from deeplab_jax.config import base_config
        from deeplab_jax.data import check, prepare

        source, data_dir = (pathlib.Path(argument) for argument in sys.argv[1:])
        prepare.prepare("folder", source=source, data_dir=data_dir)
        assert check.check("folder", data_dir=data_dir).ok
        config = base_config()
        config.data.update(batch_size=2, image_size=(32, 32))
        opened = data.open_source("folder", "train", data_dir=data_dir)
        with contextlib.closing(data.train_batches(opened, config.data, seed=0)) as batches:
            assert next(batches)["image"].shape == (2, 32, 32, 3)
        with contextlib.closing(data.eval_batches(opened, data.protocol_for(config), batch_size=2)) as batches:
            assert sum(batch["valid"].sum() for batch in batches) == len(opened)
        assert not {"tensorflow", "tensorflow_datasets", "torch"} & set(sys.modules)
        print("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(own_folder), str(tmp_path / "data")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert done.stdout == "done\n", done.stderr
