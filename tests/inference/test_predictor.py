"""Prediction: every kind of image at its own size, and the same labels that evaluation scores."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from deeplab_jax import data, pretrained
from deeplab_jax.data import images
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation import evaluator, metrics
from deeplab_jax.inference.files import find_images, predict_files
from deeplab_jax.inference.predictor import Predictor
from deeplab_jax.labels import IGNORE_LABEL, SYNTHETIC
from deeplab_jax.workdir import layout
from tests.conftest import make_folder, scene
from tests.support import exports


@pytest.fixture(scope="module")
def network(trained) -> pretrained.PretrainedNetwork:
    return pretrained.load(trained)


@pytest.fixture(scope="module")
def predictor(trained) -> Predictor:
    return Predictor.from_workdir(trained, whole_config(trained))


VIEWS = {"scales": (1.25,), "flip": True}


def whole_config(workdir: pathlib.Path):
    config = layout.read_config(workdir)
    config.eval.protocol, config.eval.image_size = "whole", (65, 65)
    return config


def photo(height: int, width: int) -> np.ndarray:
    """An image in which the network sees several classes, at any size."""
    image, _ = scene(3, 40, 56)
    return data.resize_image(image, (height, width))


def test_a_predictor_knows_the_classes_of_its_run(predictor):
    assert predictor.label_set == SYNTHETIC


def test_labels_come_at_the_images_own_sizes(predictor):
    sizes = [(33, 47), (64, 64), (10, 41), (40, 9)]
    label_maps = predictor([photo(*size) for size in sizes])
    assert [label_map.shape for label_map in label_maps] == sizes
    for label_map in label_maps:
        assert label_map.dtype == np.uint8
        assert label_map.max() < SYNTHETIC.num_classes


def test_a_image_is_labeled_the_same_alone_and_among_others(predictor):
    first, second = photo(46, 65), photo(46, 65)[::-1].copy()
    alone = predictor([first])[0]
    assert np.array_equal(alone, predictor([second, first])[1])
    assert len(np.unique(alone)) > 1  # else any mix-up would go unnoticed


# ---- Kinds of images and of results ----


def test_paths_pillows_images_and_arrays_may_be_mixed(predictor, tmp_path):
    upright = photo(45, 31)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "side.png", exif=exif)
    with Image.open(tmp_path / "side.png") as opened:
        masks = predictor([tmp_path / "side.png", upright, str(tmp_path / "side.png"), opened, photo(33, 47)])
    assert [mask.shape for mask in masks] == [(45, 31)] * 4 + [(33, 47)]
    for mask in masks[:4]:
        assert np.array_equal(mask, masks[1])
    assert np.array_equal(predictor.predict(tmp_path / "side.png").label_set, masks[1])
    masks[0][:] = 0  # they are the caller's


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.zeros((20, 20), np.uint8)], "^image 0 is an array of uint8 and shape .20, 20.; give uint8 RGB"),
        ([np.zeros((20, 20, 4), np.uint8)], "^image 0 is an array of uint8 and shape"),
        ([np.zeros((20, 20, 3))], "^image 0 is an array of float64"),
        ([np.zeros((0, 20, 3), np.uint8)], "^image 0 is an array of uint8 and shape"),
        (["nowhere/none.jpg"], "none.jpg does not exist"),
        ("photo.jpg", "^give a list of images"),
        (np.zeros((20, 20, 3), np.uint8), "^give a list of images"),
    ],
)
def test_what_is_no_image_is_named(predictor, images, message):
    with pytest.raises(UserError, match=message):
        predictor(images)


@pytest.mark.parametrize("several", [False, True])
def test_labels_are_the_likeliest_classes_and_confidence_is_their_probability(trained, predictor, several):
    if several:
        predictor = Predictor.from_workdir(trained, whole_config(trained), **VIEWS)
    image = photo(46, 65)
    result, full = predictor.predict(image), predictor.predict(image, probabilities=True)
    assert result.probabilities is None
    assert np.array_equal(result.label_map, predictor([image])[0])
    assert np.array_equal(result.label_map, full.label_map)
    assert full.probabilities.shape == (46, 65, SYNTHETIC.num_classes)
    np.testing.assert_allclose(full.probabilities.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(result.confidence, full.probabilities.max(axis=-1), rtol=1e-5)
    chosen = np.take_along_axis(full.probabilities, full.label_map[..., None].astype(int), axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, full.confidence, rtol=1e-5)
    assert result.confidence.dtype == np.float32
    assert np.ptp(result.confidence) > 0


def test_among_chosen_classes_probabilities_are_shared_anew(trained, predictor):
    image = photo(46, 65)
    among_all = predictor.predict(image, probabilities=True).probabilities
    few = Predictor.from_workdir(trained, whole_config(trained), classes=["star", 0, "2"])
    assert few.label_set == SYNTHETIC
    result = few.predict(image, probabilities=True)
    chosen = [0, 2, 4]
    expected = among_all[..., chosen] / among_all[..., chosen].sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(result.probabilities[..., chosen], expected, rtol=1e-4)
    assert not result.probabilities[..., [1, 3, 5]].any()
    assert set(np.unique(result.label_map)) <= set(chosen)
    assert np.mean(result.label_map == np.array(chosen)[expected.argmax(axis=-1)]) > 0.999  # ties within rounding


def test_the_size_of_the_networks_input_can_be_chosen(trained):
    config = layout.read_config(trained)
    config.data.image_size = (48, 80)
    image = photo(60, 70)
    expected = Predictor.from_workdir(trained, config).predict(image)
    result = Predictor.from_workdir(trained, size=(48, 80)).predict(image)
    np.testing.assert_array_equal(result.confidence, expected.confidence)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["strar"]}, "^class 'strar' does not exist; did you mean star?"),
        ({"classes": [6]}, "^class '6' does not exist"),
        ({"classes": []}, "^no classes to choose among"),
        ({"scales": ()}, "^scales=.* must be factors above 0"),
        ({"size": (64, 64), "window": (64, 64)}, "^size and window exclude each other"),
        ({"size": (8, 64)}, "^size=.8, 64. must be .height, width., each at least the output stride 16"),
        ({"window": (64,)}, "^window=.64,. must be .height, width."),
    ],
)
def test_options_that_make_no_sense_are_refused(network, options, message):
    with pytest.raises(UserError, match=message):
        Predictor.from_pretrained(network, pretrained.preset_config(network), **options)


# ---- Compilations ----


def test_many_sizes_share_few_compiled_programs(trained, caplog):
    """Twelve sizes lie in two pairs of buckets: one network, resized to two canvases; or two networks."""
    sizes = [(50, 60), (64, 64), (33, 20), (10, 63), (64, 1), (31, 64)]
    sizes += [(64, 65), (1, 128), (40, 65), (60, 127), (64, 128), (63, 100)]
    config = layout.read_config(trained)
    config.eval.protocol = "whole"
    counts = []
    for predictor in (Predictor.from_workdir(trained), Predictor.from_workdir(trained, config)):
        caplog.clear()
        with jax.log_compiles():
            masks = predictor([photo(*size) for size in sizes])
        assert [mask.shape for mask in masks] == sizes
        counts.append(compilations(caplog))
    assert counts == [1 + 2, 2 + 2]


def compilations(caplog) -> int:
    return sum("Finished XLA compilation" in record.getMessage() for record in caplog.records)


# ---- Windows and videos ----


def test_windows_say_what_the_whole_image_does_where_they_see_enough(network):
    """Windows of 384 begin at 0 and 256. Without image pooling what a network says of a pixel is local: more than 150
    pixels from a window's border it sees all that it looks at."""
    config = pretrained.preset_config(network)
    config.train.compute_dtype, config.eval.protocol = "float64", "whole"
    config.model.image_pooling, config.model.atrous_rates = False, (1,)
    network = exports.with_random_variables(dataclasses.replace(network, model=config.model))
    image = np.tile(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), (1, 10, 1))
    with jax.enable_x64(True):
        whole = Predictor.from_pretrained(network, config, size=(64, 640)).predict(image, probabilities=True)
        slid = Predictor.from_pretrained(network, config, window=(64, 384)).predict(image, probabilities=True)
    difference = np.abs(whole.probabilities - slid.probabilities).max(axis=(0, 2))
    assert np.ptp(whole.probabilities) > 0.1
    assert difference[:224].max() < 1e-9  # float64; what differs is the order of sums
    assert difference[-224:].max() < 1e-9
    assert 1e-6 < difference[224:-224].max() < 1  # where neither window sees enough
    np.testing.assert_allclose(slid.probabilities.sum(axis=-1), 1, rtol=1e-9)


def test_windows_compile_one_program_for_images_of_all_sizes(trained, caplog):
    predictor = Predictor.from_workdir(trained, window=(48, 64))
    with jax.log_compiles():
        masks = predictor([photo(100, 150), photo(30, 20), photo(48, 64), photo(130, 40)])
    assert [mask.shape for mask in masks] == [(100, 150), (30, 20), (48, 64), (130, 40)]
    assert compilations(caplog) == 2


def test_smoothing_mixes_what_the_network_says_of_frames(predictor):
    one, other = photo(46, 65), photo(46, 65)[:, ::-1].copy()
    expected = predictor([one, other])
    assert not np.array_equal(*expected)
    plain, slow = predictor.smoothed(1), predictor.smoothed(1e-6)
    assert all(np.array_equal(plain(frame), mask) for frame, mask in zip((one, other), expected, strict=True))
    assert all(np.array_equal(slow(frame), expected[0]) for frame in (one, other, other))
    half = predictor.smoothed(0.5)
    assert np.array_equal(half(one), expected[0])
    for _ in range(40):
        label_map = half(other)
    assert np.array_equal(label_map, expected[1])  # what is left of the first frame is rounded away
    for alpha in (0, 1.1):
        with pytest.raises(UserError, match=f"^smoothing by {alpha} is not above 0 and at most 1"):
            predictor.smoothed(alpha)


# ---- Files ----


def _save_kinds(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """One image of every kind that cameras and tools write; their (height, width) as people see them."""
    folder.mkdir()
    rgb = Image.fromarray(photo(31, 45))
    rgb.save(folder / "plain.jpg")
    rgb.convert("L").save(folder / "gray.png")
    rgb.convert("LA").save(folder / "gray_alpha.png")
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("CMYK").save(folder / "press.jpg")
    rgb.convert("P").save(folder / "palette.png")
    rgb.save(folder / "print.TIFF")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: turn by 90 degrees to see it
    rgb.save(folder / "portrait.jpeg", exif=exif)
    (folder / "notes.txt").write_text("not an image")
    names = ("plain", "gray", "gray_alpha", "alpha", "press", "palette", "print")
    return dict.fromkeys(names, (31, 45)) | {"portrait": (45, 31)}


def test_every_kind_of_image_gets_a_mask_and_an_overlay_at_its_size(predictor, tmp_path):
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


def test_the_indices_of_a_mask_file_are_the_predicted_labels_in_the_classes_colors(predictor, tmp_path):
    Image.fromarray(photo(33, 47)).save(tmp_path / "a.png")
    mask_path, _ = predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
    (label_map,) = predictor([photo(33, 47)])
    with Image.open(mask_path) as mask:
        assert np.array_equal(np.asarray(mask), label_map)
        assert np.array_equal(np.asarray(mask.convert("RGB")), SYNTHETIC.color_table()[label_map])


def test_a_rotated_image_is_labeled_as_people_see_it(predictor, tmp_path):
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


def test_a_damaged_image_is_named(predictor, tmp_path):
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


def test_images_are_found_in_order_and_what_is_missing_is_named(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert find_images([tmp_path / "b.png", tmp_path]) == [tmp_path / name for name in ("b.png", "a.JPG", "b.png")]
    with pytest.raises(UserError, match="^folder .*empty has no images"):
        find_images([tmp_path / "empty"])
    with pytest.raises(UserError, match="^.*none.jpg does not exist$"):
        find_images([tmp_path / "none.jpg"])


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
    """Prepared data of the synthetic classes, whose images have differing sizes; the data_dir."""
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
    [("whole", (65, 65), {}), ("squeeze", None, {}), ("whole", (65, 65), VIEWS)],
    ids=["whole", "squeeze", "views"],
)
def test_predicted_masks_score_what_evaluation_says(workdir, photos, protocol, image_size, views):
    config = layout.read_config(workdir)
    config.eval.update(views)
    config.data.name, config.data.data_dir = "folder", str(photos)
    config.eval.protocol, config.eval.image_size, config.eval.ignored_pixels = protocol, image_size, "exclude"
    scored = evaluator.evaluate(workdir, config=config, split="val")

    predictor = Predictor.from_workdir(workdir, config, **views)
    source = data.open_source("folder", "val", data_dir=photos)
    sizes, confusion = set(), np.zeros((SYNTHETIC.num_classes,) * 2, np.int64)
    for i in range(len(source)):
        image = images.decode_image(source[i]["image"], "")
        truth = images.decode_mask(source[i]["label"], "")
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


def test_a_image_larger_than_the_evaluations_is_scaled_to_fit_and_comes_back_at_its_size(workdir):
    config = layout.read_config(workdir)
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
