"""Prediction: every kind of picture at its own size, and the same labels that evaluation scores."""

import pathlib

import numpy as np
import pytest
from conftest import make_folder, scene
from PIL import Image

from deeplab_jax import checkpoint, data, evaluate, metrics
from deeplab_jax.data import pictures
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL, SYNTHETIC
from deeplab_jax.predict import Predictor, find_pictures, predict_files


@pytest.fixture(scope="module")
def predictor(trained) -> Predictor:
    config = checkpoint.read_config(trained)
    config.eval.protocol, config.eval.image_size = "whole", (65, 65)
    return Predictor.from_workdir(trained, config)


def photo(height: int, width: int) -> np.ndarray:
    """A picture in which the network sees several classes, at any size."""
    image, _ = scene(3, 40, 56)
    return data.resize_image(image, (height, width))


def test_a_predictor_knows_the_classes_of_its_run(predictor):
    assert predictor.labels == SYNTHETIC


def test_labels_come_at_the_pictures_own_sizes(predictor):
    sizes = [(33, 47), (64, 64), (10, 41), (40, 9)]
    label_maps = predictor([photo(*size) for size in sizes])
    assert [label_map.shape for label_map in label_maps] == sizes
    for label_map in label_maps:
        assert label_map.dtype == np.uint8
        assert label_map.max() < SYNTHETIC.num_classes


def test_a_picture_is_labelled_the_same_alone_and_among_others(predictor):
    first, second = photo(46, 65), photo(46, 65)[::-1].copy()
    alone = predictor([first])[0]
    assert np.array_equal(alone, predictor([second, first])[1])
    assert len(np.unique(alone)) > 1  # else any mix-up would go unnoticed


def _save_kinds(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """One picture of every kind that cameras and tools write; their (height, width) as people see them."""
    folder.mkdir()
    rgb = Image.fromarray(photo(31, 45))
    rgb.save(folder / "plain.jpg")
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("LA").save(folder / "grey_alpha.png")
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("CMYK").save(folder / "press.jpg")
    rgb.convert("P").save(folder / "palette.png")
    rgb.save(folder / "print.TIFF")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: turn by 90 degrees to see it
    rgb.save(folder / "portrait.jpeg", exif=exif)
    (folder / "notes.txt").write_text("not a picture")
    names = ("plain", "grey", "grey_alpha", "alpha", "press", "palette", "print")
    return dict.fromkeys(names, (31, 45)) | {"portrait": (45, 31)}


def test_every_kind_of_picture_gets_a_mask_and_an_overlay_at_its_size(predictor, tmp_path):
    sizes = _save_kinds(tmp_path / "in")
    written = predict_files(predictor, [tmp_path / "in"], tmp_path / "out")
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    assert {path.name for path in written} == {f"{name}_{kind}.png" for name in sizes for kind in ("mask", "overlay")}
    for name, (height, width) in sizes.items():
        with Image.open(tmp_path / "out" / f"{name}_mask.png") as mask:
            assert (mask.mode, mask.size) == ("P", (width, height)), name
        with Image.open(tmp_path / "out" / f"{name}_overlay.png") as overlay:
            assert overlay.mode == "RGB"
            assert overlay.height > height  # the legend
            assert overlay.width >= width


def test_the_indices_of_a_mask_file_are_the_predicted_labels_in_the_classes_colours(predictor, tmp_path):
    Image.fromarray(photo(33, 47)).save(tmp_path / "a.png")
    mask_path, _ = predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
    (label_map,) = predictor([photo(33, 47)])
    with Image.open(mask_path) as mask:
        assert np.array_equal(np.asarray(mask), label_map)
        assert np.array_equal(np.asarray(mask.convert("RGB")), SYNTHETIC.color_table()[label_map])


def test_a_rotated_picture_is_labelled_as_people_see_it(predictor, tmp_path):
    upright = photo(45, 31)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "side.png", exif=exif)
    mask_path, _ = predict_files(predictor, [tmp_path / "side.png"], tmp_path / "out")
    with Image.open(mask_path) as mask:
        assert np.array_equal(np.asarray(mask), predictor([upright])[0])


# ---- What is refused ----


def test_results_are_not_overwritten(predictor, tmp_path):
    for name in ("a", "b"):
        Image.fromarray(photo(20, 20)).save(tmp_path / f"{name}.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b_overlay.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"b_overlay.png exists; choose another --output or remove it$"):
        predict_files(predictor, [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b_overlay.png"]
    assert (tmp_path / "out" / "b_overlay.png").read_bytes() == b"mine"


def test_inputs_of_one_name_are_refused_before_anything_is_written(predictor, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(photo(20, 20)).save(tmp_path / folder / "a.png")
    with pytest.raises(UserError, match="^two inputs are named a; predict them into different --output folders$"):
        predict_files(predictor, [tmp_path / "one", tmp_path / "two" / "a.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_picture_is_named(predictor, tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(photo(60, 60)).save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="cut.jpg"):
        predict_files(predictor, [path], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_output_that_is_a_file_is_refused(predictor, tmp_path):
    Image.fromarray(photo(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=f"^--output {tmp_path / 'out'} cannot be made"):
        predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")


def test_pictures_are_found_in_order_and_what_is_missing_is_named(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert find_pictures([tmp_path / "b.png", tmp_path]) == [tmp_path / name for name in ("b.png", "a.JPG", "b.png")]
    with pytest.raises(UserError, match="^folder .*empty has no pictures"):
        find_pictures([tmp_path / "empty"])
    with pytest.raises(UserError, match="^.*none.jpg does not exist$"):
        find_pictures([tmp_path / "none.jpg"])


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_a_run_is_refused(tmp_path, made):
    workdir = tmp_path / "run"
    if made:
        workdir.mkdir()
    with pytest.raises(UserError, match="^workdir .* does not exist" if not made else "^.*run holds no run"):
        Predictor.from_workdir(workdir)
    assert list(tmp_path.rglob("*")) == ([workdir] if made else [])


# ---- The same labels as evaluation ----


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    """Prepared data of the synthetic classes, whose pictures have differing sizes; the data_dir."""
    root = tmp_path_factory.mktemp("photos")
    folder = make_folder(root / "raw", count=6, classes="\n".join(SYNTHETIC.class_names) + "\n")
    for i, size in enumerate([(40, 56), (33, 47), (56, 40), (21, 60)]):
        image, label_map = scene(i, *size, num_classes=SYNTHETIC.num_classes)
        Image.fromarray(image).save(folder / "images" / f"field_{i:03d}.jpg", quality=95)
        Image.fromarray(label_map).save(folder / "masks" / f"field_{i:03d}.png")
    prepare("folder", source=folder, data_dir=root / "data", val_fraction=0.9)
    return root / "data"


@pytest.mark.parametrize(("protocol", "image_size"), [("whole", (65, 65)), ("squeeze", None)], ids=["whole", "squeeze"])
def test_predicted_masks_score_what_evaluation_says(workdir, photos, protocol, image_size):
    config = checkpoint.read_config(workdir)
    config.data.name, config.data.data_dir = "folder", str(photos)
    config.eval.protocol, config.eval.image_size, config.eval.void = protocol, image_size, "ignore"
    scored = evaluate.evaluate_workdir(workdir, config=config, split="val")

    predictor = Predictor.from_workdir(workdir, config)
    source = data.open_source("folder", "val", data_dir=photos)
    sizes, confusion = set(), np.zeros((SYNTHETIC.num_classes,) * 2, np.int64)
    for i in range(len(source)):
        image = pictures.decode_picture(source[i]["image"], "")
        truth = pictures.decode_label_map(source[i]["label"], "")
        (predicted,) = predictor([image])
        counted = truth != IGNORE_LABEL
        np.add.at(confusion, (truth[counted], predicted[counted]), 1)
        sizes.add(truth.shape)
    assert len(sizes) > 2
    assert scored["num_images"] == len(source)
    assert scored["num_pixels"] == confusion.sum()
    # Batches of one and of eight round differently: a pixel where two classes tie may change sides.
    own = metrics.scores(confusion, SYNTHETIC.class_names)
    assert own["pixel_accuracy"] * own["num_pixels"] == pytest.approx(
        scored["pixel_accuracy"] * scored["num_pixels"], abs=3
    )
    for name, iou in own["per_class_iou"].items():
        assert scored["per_class_iou"][name] == pytest.approx(iou, abs=2e-3), name


def test_a_picture_larger_than_the_evaluations_is_scaled_to_fit_and_comes_back_at_its_size(workdir):
    config = checkpoint.read_config(workdir)
    config.eval.protocol, config.eval.image_size = "whole", (65, 65)
    predictor = Predictor.from_workdir(workdir, config)
    large = photo(120, 168)
    small = data.resize_image(large, (46, 65))  # 65 / 168 of the height, rounded down
    (labels_large,), (labels_small,) = predictor([large]), predictor([small])
    assert labels_large.shape == (120, 168)
    # The network saw the same pixels: its labels agree where both are sampled, but for their outlines.
    rows, columns = (np.arange(46) * 120 // 46 + 1, np.arange(65) * 168 // 65 + 1)
    agreement = np.mean(labels_large[np.ix_(rows, columns)] == labels_small)
    assert agreement > 0.95
    assert len(np.unique(labels_small)) > 1
