"""Mistakes in raw data sets: the file is named, in one line, and nothing is left behind."""

import shutil

import numpy as np
import pytest
import scipy.io
from PIL import Image

from deeplab_jax import data
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError
from tests.conftest import write_jpeg, write_sbd_mat
from tests.support.preparation import assert_fails


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, r"classes\.txt does not exist; write one class name per line"),
        ("\n\n", r"classes\.txt contains no class names"),
        ("ground\ncrop\nground\n", r"classes\.txt: two classes have the same name"),
        ("ground 0 0 0\ncrop\n", r"classes\.txt, line 2: give a color .* to every class or to none"),
        ("ground\ncrop 0 0 0\n", r"classes\.txt, line 2: give a color .* to every class or to none"),
        ("ground 0 0 0\ncrop 0 0 0\n", r"classes\.txt: two classes have the same color"),
        ("\n".join(f"class {i}" for i in range(256)), r"classes\.txt has 256 classes; at most 255 are possible"),
    ],
)
def test_a_wrong_class_list_is_named(own_folder, tmp_path, classes, message):
    path = own_folder / "classes.txt"
    path.unlink() if classes is None else path.write_text(classes)
    assert_fails(message, "folder", tmp_path / "data", source=own_folder)


def wrong_missing_mask(root):
    (root / "masks" / "field_004.png").unlink()
    return r"image .*field_004\.jpg has no mask; put field_004\.png in .*masks"


def wrong_truncated_jpeg(root):
    path = root / "images" / "field_004.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    return r"image .*field_004\.jpg cannot be read: .*truncated"


def wrong_label(root):
    label = np.zeros((40, 56), np.uint8)
    label[7, 7] = 77
    Image.fromarray(label).save(root / "masks" / "field_004.png")
    return r"mask .*field_004\.png contains label 77; labels must be below 3"


def wrong_size(root):
    Image.fromarray(np.zeros((40, 55), np.uint8)).save(root / "masks" / "field_004.png")
    return r"image .*field_004\.jpg is 40x56 .*, but its mask is 40x55; they must have the same size"


def wrong_jpeg_mask(root):
    (root / "masks" / "field_004.png").unlink()
    write_jpeg(root / "masks" / "field_004.jpg", np.zeros((40, 56), np.uint8))
    return r"mask .*field_004\.jpg is a JPEG"


def wrong_empty_list(root):
    (root / "train.txt").write_text("field_001\n")
    (root / "val.txt").write_text("\n")
    return "split val of folder is empty"


def wrong_listed_name(root):
    (root / "train.txt").write_text("field_001\nfield_999\n")
    return r"train\.txt, line 2: `field_999` is not an image in images/"


def wrong_no_images(root):
    shutil.rmtree(root / "images")
    (root / "images").mkdir()
    return r"images contains no images \(\.jpg, .*\)"


def wrong_one_image(root):
    for i in range(1, 6):
        (root / "images" / f"field_{i:03d}.jpg").unlink()
    return "images contains one image; train and val need at least one each"


def wrong_no_masks_folder(root):
    shutil.rmtree(root / "masks")
    return "has no folder masks/"


def wrong_two_of_a_name(root):
    Image.fromarray(np.zeros((40, 56), np.uint8)).save(root / "images" / "field_004.png")
    return "two images named field_004"


def wrong_zero_and_255(root):
    (root / "classes.txt").write_text("ground\ncrop\n")
    for path in (root / "masks").iterdir():
        Image.fromarray(np.resize(np.array([0, 255], np.uint8), (40, 56))).save(path)
    return r"gray masks contain only 0 and 255"


@pytest.mark.parametrize("mistake", [value for name, value in sorted(globals().items()) if name.startswith("wrong_")])
def test_a_mistake_in_a_folder_is_named(own_folder, tmp_path, mistake):
    assert_fails(mistake(own_folder), "folder", tmp_path / "data", source=own_folder)


def test_mistakes_in_other_layouts_are_named(tmp_path, voc_folder, sbd_folder, camvid_folder):
    (tmp_path / "empty").mkdir()
    into = tmp_path / "data"
    assert_fails("does not have SBD's layout", "sbd", into, source=tmp_path / "empty")
    assert_fails("does not have the layout of VOC 2012", "voc2012_segmentation", into, source=tmp_path / "empty")
    assert_fails("does not have CamVid's layout", "camvid", into, source=tmp_path / "empty")
    assert_fails("gone does not exist", "sbd", into, source=tmp_path / "gone")
    assert_fails("camvid has no public download", "camvid", into)
    assert_fails("'sdb' does not exist; did you mean sbd?", "sdb", into)
    assert_fails("synthetic has no raw files, so there is nothing to prepare", "synthetic", into)
    assert_fails(
        "--sbd-source is an option of voc2012_segmentation, not of camvid",
        "camvid",
        into,
        source=camvid_folder,
        sbd_source=sbd_folder,
    )
    assert_fails(
        "--val-fraction is an option of folder, not of camvid", "camvid", into, source=camvid_folder, val_fraction=0.5
    )

    dataset = sbd_folder / "benchmark_RELEASE" / "dataset"
    mat = dataset / "cls" / "2008_000008.mat"
    whole = mat.read_bytes()
    mat.write_bytes(whole[:150])
    assert_fails(r"2008_000008\.mat cannot be read as an SBD class mask", "sbd", into, source=sbd_folder)
    scipy.io.savemat(mat, {"GTinst": 1})
    assert_fails(r"2008_000008\.mat cannot be read as an SBD class mask", "sbd", into, source=sbd_folder)
    mat.unlink()
    assert_fails(r"mask .*2008_000008\.mat does not exist", "sbd", into, source=sbd_folder)
    write_sbd_mat(mat, np.full((40, 56), 77, np.uint8))
    assert_fails(r"mask of 2008_000008.* contains label 77", "sbd", into, source=sbd_folder)
    (dataset / "val.txt").write_text("")
    assert_fails("split val of sbd is empty", "sbd", into, source=sbd_folder)

    (voc_folder / "SegmentationClass" / "2008_000002.png").unlink()
    assert_fails(r"2008_000002\.png does not exist", "voc2012_segmentation", into, source=voc_folder)


def test_a_data_folder_that_cannot_be_created_is_named(own_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot create data folder .*file/data: "):
        prepare("folder", source=own_folder, data_dir=tmp_path / "file" / "data")


def test_a_data_set_that_is_not_prepared_is_named(own_folder, tmp_path):
    with pytest.raises(UserError, match="folder is not prepared in .*; run `deeplab-jax data prepare folder"):
        data.open_source("folder", "train", data_dir=tmp_path)
    with pytest.raises(UserError, match="data set 'foldr' does not exist; did you mean folder?"):
        data.open_source("foldr", "train", data_dir=tmp_path)
    prepare("folder", source=own_folder, data_dir=tmp_path)
    with pytest.raises(UserError, match="has no split 'vall'; did you mean val?"):
        data.open_source("folder", "vall", data_dir=tmp_path)
