"""Predicted labels have the scores of evaluation, under every protocol."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import data
from deeplab_jax.data import images
from deeplab_jax.data.prepare import prepare
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.evaluator import evaluate
from deeplab_jax.inference.predictor import Predictor
from deeplab_jax.labels import IGNORE_LABEL, SYNTHETIC
from deeplab_jax.workdir import layout
from tests.conftest import make_folder, scene
from tests.inference.test_predictor import VIEWS, label_maps, photo


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    """The data_dir of a prepared data set with the synthetic classes and images of several sizes."""
    root = tmp_path_factory.mktemp("photos")
    folder = make_folder(root / "raw", count=6, classes="\n".join(SYNTHETIC.class_names) + "\n")
    for i, size in enumerate([(40, 56), (33, 47), (56, 40), (21, 60)]):
        image, label_map = scene(i, *size, num_classes=SYNTHETIC.num_classes)
        Image.fromarray(image).save(folder / "images" / f"field_{i:03d}.jpg", quality=95)
        Image.fromarray(label_map).save(folder / "masks" / f"field_{i:03d}.png")
    prepare("folder", source=folder, data_dir=root / "data", val_fraction=0.9)
    return root / "data"


@pytest.mark.parametrize(
    ("protocol", "image_size", "views"),
    [
        ("whole", (65, 65), {}),
        ("squeeze", None, {}),
        ("whole", (65, 65), VIEWS),
        ("keep_ratio", None, {}),
        ("windows", None, {"flip": True}),
    ],
    ids=["whole", "squeeze", "views", "keep_ratio", "windows"],
)
def test_predicted_labels_have_the_scores_of_evaluation(workdir, photos, protocol, image_size, views):
    config = layout.read_config(workdir)
    config.eval.update(views)
    config.eval.size_multiple, config.eval.window = 32, (32, 32)
    config.eval.scale_to = (32, 64) if protocol == "keep_ratio" else None
    config.data.name, config.data.data_dir = "folder", str(photos)
    config.eval.protocol, config.eval.image_size, config.eval.ignored_pixels = protocol, image_size, "exclude"
    scored = evaluate(workdir, config=config, split="val")

    predictor = Predictor.from_pretrained(workdir, config=config, **views)
    source = data.open_source("folder", "val", data_dir=photos)
    sizes, confusion = set(), np.zeros((SYNTHETIC.num_classes,) * 2, np.int64)
    for i in range(len(source)):
        image = images.decode_image(source[i]["image"], "")
        truth = images.decode_mask(source[i]["label"], "")
        predicted = predictor(image).label_map
        counted = truth != IGNORE_LABEL
        np.add.at(confusion, (truth[counted], predicted[counted]), 1)
        sizes.add(truth.shape)
    assert len(sizes) > 2
    assert scored["num_images"] == len(source)
    assert scored["num_pixels"] == confusion.sum()
    # Batches of one and of eight round differently: a pixel where two classes tie may change its class.
    own = metrics.scores(confusion, SYNTHETIC.class_names)
    assert own["pixel_accuracy"] * own["num_pixels"] == pytest.approx(
        scored["pixel_accuracy"] * scored["num_pixels"], abs=3
    )
    for name, iou in own["per_class_iou"].items():
        assert scored["per_class_iou"][name] == pytest.approx(iou, abs=2e-3), name


@pytest.mark.parametrize("views", [{}, {"scales": (0.75, 1.0), "flip": True}], ids=["one", "views"])
def test_blended_windows_have_the_scores_of_predicted_masks_in_every_digit(workdir, photos, views):
    config = layout.read_config(workdir)
    config.data.name, config.data.data_dir, config.mesh.data = "folder", str(photos), 1
    fields = {"protocol": "windows", "window": (24, 24), "window_average": "blended", "ignored_pixels": "exclude"}
    config.eval.update(**fields, **views)
    scored = evaluate(workdir, config=config, split="val")

    predictor = Predictor.from_pretrained(workdir, window=(24, 24), **views)  # as `predict --window` does
    same = Predictor.from_pretrained(workdir, config=config, **views)
    source = data.open_source("folder", "val", data_dir=photos)
    confusion = np.zeros((SYNTHETIC.num_classes,) * 2, np.int64)
    for i in range(len(source)):
        image = images.decode_image(source[i]["image"], "")
        truth = images.decode_mask(source[i]["label"], "")
        predicted = predictor(image).label_map
        np.testing.assert_array_equal(same(image).label_map, predicted)
        counted = truth != IGNORE_LABEL
        np.add.at(confusion, (truth[counted], predicted[counted]), 1)
    own = metrics.scores(confusion, SYNTHETIC.class_names)
    assert {name: scored[name] for name in own} == own


def test_an_image_larger_than_the_evaluation_size_is_scaled_down_and_labeled_at_its_own_size(workdir):
    config = layout.read_config(workdir)
    config.eval.protocol, config.eval.image_size = "whole", (65, 65)
    predictor = Predictor.from_pretrained(workdir, config=config)
    large = photo(120, 168)
    small = data.resize_image(large, (46, 65))  # 65 / 168 of the height, rounded down
    labels_large, labels_small = label_maps(predictor([large, small]))
    assert labels_large.shape == (120, 168)
    # The network sees the same pixels, so labels agree at the same places except along outlines.
    rows, columns = (np.arange(46) * 120 // 46 + 1, np.arange(65) * 168 // 65 + 1)
    agreement = np.mean(labels_large[np.ix_(rows, columns)] == labels_small)
    assert agreement > 0.95
    assert len(np.unique(labels_small)) > 1
