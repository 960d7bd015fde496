"""Submissions against the published rules of the servers: names, modes, sizes, ids, colors."""

import fnmatch
import logging

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data import read_image
from deeplab_jax.errors import UserError
from deeplab_jax.inference import files
from deeplab_jax.inference.prediction import Prediction
from deeplab_jax.inference.predictor import Predictor
from deeplab_jax.inference.stream import Labeled
from deeplab_jax.inference.submission import SUBMISSIONS
from deeplab_jax.labels import SYNTHETIC, LabelSet, voc_palette


class Stripes(Predictor):
    """Predicts every class of a label set, in diagonal stripes."""

    def __init__(self, label_set):
        self.label_set = label_set

    def read(self, path, **options):
        return read_image(path, **options)

    def __call__(self, image):
        height, width = image.shape[:2]
        stripes = np.add.outer(np.arange(height), np.arange(width)) % self.label_set.num_classes
        return Prediction(stripes.astype(np.uint8), self.label_set)

    def label_items(self, items, read, **options):
        for item in items:
            image = read(item)
            yield Labeled(item, image, prediction=self(image))


def predict(name, folder, image_names, size):
    submission = SUBMISSIONS[name]
    (folder / "in").mkdir()
    for image_name in image_names:
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / "in" / image_name)
    paths = submission.paths([folder / "in"], folder / "out")
    predictor = Stripes(submission.label_set)
    report = files.predict_paths(predictor, paths, write=submission.write)
    assert not report.failed
    label = predictor(np.zeros((*size, 3))).label_map
    return sorted(report.written), label


@pytest.mark.parametrize("competition", ["comp5", "comp6"])
def test_voc_gets_indexed_pngs_in_the_folders_of_the_development_kit(tmp_path, competition):
    written, label = predict(f"voc_{competition}", tmp_path, ["2008_000006.jpg", "2011_003271.jpg"], (40, 50))
    folder = tmp_path / "out" / "results" / "VOC2012" / "Segmentation" / f"{competition}_test_cls"
    assert written == [folder / "2008_000006.png", folder / "2011_003271.png"]
    with Image.open(written[0]) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "P", (50, 40))
        np.testing.assert_array_equal(np.asarray(image), label)
        assert image.getextrema() == (0, 20)  # 255 is not allowed
        palette = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(palette[:21], voc_palette(21))


def test_cityscapes_gets_label_ids_at_full_size(tmp_path):
    names = ["berlin_000000_000019_leftImg8bit.png", "bad-honnef_000001_000019_leftImg8bit.png"]
    written, label = predict("cityscapes", tmp_path, names, (1024, 2048))
    for name in names:  # the evaluation script looks for exactly one file by this pattern
        city, sequence, frame, _ = name.split("_")
        assert sum(fnmatch.fnmatch(path.name, f"{city}_{sequence}_{frame}*.png") for path in written) == 1
    with Image.open(written[1]) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (2048, 1024))
        ids = np.asarray(image)
    # helpers/labels.py: road, sidewalk, ..., sky, person, ..., bicycle
    expected = {0: 7, 1: 8, 2: 11, 10: 23, 11: 24, 16: 31, 18: 33}
    for train_id, label_id in expected.items():
        assert set(np.unique(ids[label == train_id])) == {label_id}
    assert len(np.unique(ids)) == 19


def test_ade20k_gets_ids_from_1_to_150(tmp_path):
    written, label = predict("ade20k", tmp_path, ["ADE_test_00000001.jpg"], (60, 200))
    assert written == [tmp_path / "out" / "ADE_test_00000001.png"]
    with Image.open(written[0]) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (200, 60))
        np.testing.assert_array_equal(np.asarray(image), label + 1)
        assert image.getextrema() == (1, 150)


def test_wrong_names_sizes_and_classes_are_rejected(tmp_path, caplog):
    for name in ("berlin_000000_000019.png", "photo.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        with pytest.raises(
            UserError, match=f"{name} does not have the name of an image of Cityscapes, such as berlin_"
        ):
            SUBMISSIONS["cityscapes"].paths([tmp_path / name], tmp_path / "out")
    small = tmp_path / "berlin_000000_000019_leftImg8bit.png"
    Image.new("RGB", (20, 10)).save(small)
    with caplog.at_level(logging.WARNING, "deeplab_jax"):
        paths = SUBMISSIONS["cityscapes"].paths([small], tmp_path / "out")
    assert caplog.messages == ["1 images are predicted, but the test split of Cityscapes has 1525"]
    predictor = Stripes(SUBMISSIONS["cityscapes"].label_set)
    with pytest.raises(UserError, match=r"^an image of Cityscapes has 1024x2048 pixels .* not 10x20$"):
        files.predict_paths(predictor, paths, write=SUBMISSIONS["cityscapes"].write)
    with pytest.raises(UserError, match=r"^a submission to ADE20K needs its 150 classes .*, but the network predicts"):
        SUBMISSIONS["ade20k"].check_classes(SYNTHETIC)
    reordered = LabelSet(SYNTHETIC.class_names[::-1], SYNTHETIC.palette)
    with pytest.raises(UserError, match="needs its 21 classes"):
        SUBMISSIONS["voc_comp6"].check_classes(reordered)


def test_results_are_not_replaced_and_names_do_not_collide(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "2008_000006.jpg")
    submission = SUBMISSIONS["voc_comp6"]
    with pytest.raises(UserError, match="have the same name; predict only one of them"):
        submission.paths([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    paths = submission.paths([tmp_path / "a"], tmp_path / "out")
    files.predict_paths(Stripes(submission.label_set), paths, write=submission.write)
    with pytest.raises(UserError, match="2008_000006.png exists"):
        submission.paths([tmp_path / "a"], tmp_path / "out")
    assert submission.paths([tmp_path / "a"], tmp_path / "out", existing="skip") == {}
    assert submission.paths([tmp_path / "a"], tmp_path / "out", existing="overwrite") == paths
