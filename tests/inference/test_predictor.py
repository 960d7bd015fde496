"""Prediction: every kind of image at its own size, with the labels that evaluation scores."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import deeplab_jax
from deeplab_jax import data, pretrained
from deeplab_jax.errors import UserError
from deeplab_jax.inference.files import predict_files
from deeplab_jax.inference.prediction import Prediction
from deeplab_jax.inference.predictor import Predictor
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.workdir import layout
from tests.conftest import scene
from tests.support import exports


@pytest.fixture(scope="module")
def network(trained) -> pretrained.PretrainedNetwork:
    return pretrained.load(trained)


@pytest.fixture(scope="module")
def predictor(trained) -> Predictor:
    return Predictor.from_pretrained(trained, config=whole_config(trained))


VIEWS = {"scales": (1.25,), "flip": True}


def whole_config(workdir: pathlib.Path):
    config = layout.read_config(workdir)
    config.eval.protocol, config.eval.image_size = "whole", (65, 65)
    return config


def photo(height: int, width: int) -> np.ndarray:
    """An image in which the network predicts several classes, at any size."""
    image, _ = scene(3, 40, 56)
    return data.resize_image(image, (height, width))


def label_maps(predictions: list[Prediction]) -> list[np.ndarray]:
    return [prediction.label_map for prediction in predictions]


def test_predictors_and_predictions_describe_themselves(predictor):
    assert predictor.label_set == SYNTHETIC
    assert repr(predictor) == "Predictor(resnet10_v1_slim, 6 classes, size=(65, 65))"
    label = np.array([[0, 0, 0, 4]], np.uint8)
    assert repr(Prediction(label, SYNTHETIC)) == "Prediction(1x4: background 75.0%, star 25.0%)"


def test_labels_have_the_size_of_their_image(predictor):
    sizes = [(33, 47), (64, 64), (10, 41), (40, 9)]
    labels = label_maps(predictor([photo(*size) for size in sizes]))
    assert [label.shape for label in labels] == sizes
    for label in labels:
        assert label.dtype == np.uint8
        assert label.max() < SYNTHETIC.num_classes


def test_one_image_gives_a_prediction_and_many_give_a_list(predictor):
    first, second = photo(46, 65), photo(46, 65)[::-1].copy()
    alone = predictor(first)
    assert isinstance(alone, Prediction)
    assert alone.label_set == SYNTHETIC
    assert len(np.unique(alone.label_map)) > 1  # otherwise a mix-up would go unnoticed
    many = [second, first]
    for batch in (many, iter(many), np.stack(many)):
        predictions = predictor(batch)
        assert isinstance(predictions, list)
        assert np.array_equal(predictions[1].label_map, alone.label_map)
        assert not np.array_equal(predictions[0].label_map, alone.label_map)
    assert predictor([]) == []


@pytest.mark.parametrize("protocol", ["whole", "windows"])
def test_batches_on_several_devices_equal_single_images(trained, network, predictor, protocol):
    config = whole_config(trained)
    if protocol == "windows":
        config.eval.protocol, config.eval.window, config.eval.window_stride = "windows", (32, 32), (24, 24)
    assert jax.local_device_count() == 8
    single = predictor if protocol == "whole" else Predictor.from_network(network, config)
    batched = Predictor.from_network(network, config, batch_size=2)
    images = [photo(*[(46, 65), (50, 64)][i % 3 == 1])[:, :: 1 - 2 * (i % 2)].copy() for i in range(20)]
    results = list(batched.map(images, confidence=True))
    assert len(results) == 20
    for image, result in zip(images, results, strict=True):
        expected = single(image, confidence=True)
        assert len(np.unique(expected.label_map)) > 1
        np.testing.assert_array_equal(result.label_map, expected.label_map)
        # Programs for other batch sizes may add up in another order.
        np.testing.assert_allclose(result.confidence, expected.confidence, rtol=2e-6)


def test_the_predictions_before_an_image_that_is_not_one_are_returned(predictor):
    predictions = predictor.map([photo(46, 65), np.zeros((20, 20), np.uint8)])
    assert next(predictions).label_map.shape == (46, 65)
    with pytest.raises(UserError, match="^image 1 is an array of dtype uint8 and shape .20, 20.;"):
        next(predictions)


# ---- Kinds of images and of results ----


def test_paths_pil_images_and_arrays_can_be_mixed(predictor, tmp_path):
    upright = photo(45, 31)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "side.png", exif=exif)
    with Image.open(tmp_path / "side.png") as opened:
        masks = label_maps(
            predictor([tmp_path / "side.png", upright, str(tmp_path / "side.png"), opened, photo(33, 47)])
        )
        alone = predictor(opened)
    assert [mask.shape for mask in masks] == [(45, 31)] * 4 + [(33, 47)]
    for mask in masks[:4]:
        assert np.array_equal(mask, masks[1])
    assert np.array_equal(alone.label_map, masks[1])
    assert np.array_equal(predictor(str(tmp_path / "side.png")).label_map, masks[1])
    masks[0][:] = 0  # the caller owns them


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.zeros((20, 20), np.uint8)], "^image 0 is an array of dtype uint8 and shape .20, 20.; pass uint8 RGB"),
        ([np.zeros((20, 20, 4), np.uint8)], "^image 0 is an array of dtype uint8 and shape"),
        ([np.zeros((20, 20, 3))], "^image 0 is an array of dtype float64"),
        ([np.zeros((0, 20, 3), np.uint8)], "^image 0 is an array of dtype uint8 and shape"),
        (["nowhere/none.jpg"], "none.jpg does not exist"),
        ("photo.jpg", "photo.jpg does not exist"),
        (np.zeros((20, 20), np.uint8), "^the image is an array of dtype uint8 and shape .20, 20.; pass uint8 RGB"),
    ],
)
def test_an_argument_that_is_not_an_image_is_named(predictor, images, message):
    with pytest.raises(UserError, match=message):
        predictor(images)


@pytest.mark.parametrize("several", [False, True])
def test_labels_are_the_most_probable_classes_and_confidence_is_their_probability(trained, predictor, several):
    if several:
        predictor = Predictor.from_pretrained(trained, config=whole_config(trained), **VIEWS)
    image = photo(46, 65)
    result, full = predictor(image, confidence=True), predictor(image, confidence=True, probabilities=True)
    plain, without = predictor(image), predictor([image], probabilities=True)[0]
    assert result.probabilities is plain.probabilities is plain.confidence is without.confidence is None
    assert np.array_equal(without.probabilities, full.probabilities)
    assert np.array_equal(result.label_map, plain.label_map)
    assert np.array_equal(result.label_map, full.label_map)
    assert full.probabilities.shape == (46, 65, SYNTHETIC.num_classes)
    np.testing.assert_allclose(full.probabilities.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(result.confidence, full.probabilities.max(axis=-1), rtol=1e-5)
    chosen = np.take_along_axis(full.probabilities, full.label_map[..., None].astype(int), axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, full.confidence, rtol=1e-5)
    assert result.confidence.dtype == np.float32
    assert np.ptp(result.confidence) > 0


def test_probabilities_are_renormalized_over_the_chosen_classes(trained, predictor):
    image = photo(46, 65)
    among_all = predictor(image, probabilities=True).probabilities
    few = Predictor.from_pretrained(trained, config=whole_config(trained), classes=["star", 0, "2"])
    assert few.label_set == SYNTHETIC
    result = few(image, probabilities=True)
    chosen = [0, 2, 4]
    expected = among_all[..., chosen] / among_all[..., chosen].sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(result.probabilities[..., chosen], expected, rtol=1e-4)
    assert not result.probabilities[..., [1, 3, 5]].any()
    assert set(np.unique(result.label_map)) <= set(chosen)
    assert np.mean(result.label_map == np.array(chosen)[expected.argmax(axis=-1)]) > 0.999  # ties within rounding


def test_the_size_of_the_network_input_can_be_chosen(trained):
    config = layout.read_config(trained)
    config.data.image_size = (48, 80)
    image = photo(60, 70)
    expected = Predictor.from_pretrained(trained, config=config)(image, confidence=True)
    result = Predictor.from_pretrained(trained, size=(48, 80))(image, confidence=True)
    np.testing.assert_array_equal(result.confidence, expected.confidence)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["strar"]}, "^class 'strar' does not exist; did you mean star?"),
        ({"classes": [6]}, "^class '6' does not exist"),
        ({"classes": []}, "^classes is empty"),
        ({"scales": ()}, "^scales=.* must be factors above 0"),
        ({"size": (64, 64), "window": (64, 64)}, "^size and window are both set"),
        ({"size": (8, 64)}, "^size=.8, 64. must be .height, width., each at least the output stride 16"),
        ({"window": (64,)}, "^window=.64,. must be .height, width."),
        ({"batch_size": 0}, "^batch_size=0 must be at least 1"),
        ({"upsample": "label"}, "^upsample='label' must be one of logits, labels"),
        ({"upsample": "labels", "flip": True}, "^upsample=labels works with one view"),
        ({"upsample": "labels", "window": (64, 64)}, "^upsample=labels works with one view"),
    ],
)
def test_invalid_options_are_refused(network, options, message):
    with pytest.raises(UserError, match=message):
        Predictor.from_network(network, pretrained.preset_config(network), **options)


def test_labels_can_be_resized_instead_of_logits(trained, network):
    """Each pixel of the image has the label of the nearest pixel of the classifier."""
    predictor = Predictor.from_pretrained(trained, config=whole_config(trained), upsample="labels")
    image = photo(65, 65)
    model, _ = deeplab_jax.from_pretrained(trained)
    _, endpoints = jax.jit(lambda v, x: model.apply(v, x, train=False))(network.variables, image[None])
    coarse = np.argmax(endpoints["logits"][0], axis=-1)
    assert coarse.shape == (17, 17)
    assert len(np.unique(coarse)) > 2
    nearest = np.round((np.arange(65) + 0.5) * 17 / 65 - 0.5).clip(0, 16).astype(int)  # half-pixel centers
    np.testing.assert_array_equal(predictor(image).label_map, coarse[nearest][:, nearest])
    with pytest.raises(UserError, match="upsample=labels gives labels alone"):
        predictor(image, confidence=True)


# ---- Compilations ----


def test_many_sizes_share_few_compiled_programs(trained, caplog):
    """Twelve sizes in two pairs of buckets compile one network and two resizes, or two of each."""
    sizes = [(50, 60), (64, 64), (33, 20), (10, 63), (64, 1), (31, 64)]
    sizes += [(64, 65), (1, 128), (40, 65), (60, 127), (64, 128), (63, 100)]
    config = layout.read_config(trained)
    config.eval.protocol = "whole"
    counts = []
    for predictor in (Predictor.from_pretrained(trained), Predictor.from_pretrained(trained, config=config)):
        caplog.clear()
        with jax.log_compiles():
            masks = label_maps(predictor([photo(*size) for size in sizes]))
        assert [mask.shape for mask in masks] == sizes
        counts.append(compilations(caplog))
    assert counts == [1 + 2, 2 + 2]


def compilations(caplog) -> int:
    return sum("Finished XLA compilation" in record.getMessage() for record in caplog.records)


# ---- Windows and videos ----


def test_windows_equal_the_whole_image_where_they_see_enough_context(network):
    """Windows of 384 start at 0 and 256. Without image pooling a prediction is local: more than 150 pixels from the
    border of a window, its whole receptive field is inside the window."""
    config = pretrained.preset_config(network)
    config.train.compute_dtype, config.eval.protocol = "float64", "whole"
    config.model.image_pooling, config.model.atrous_rates = False, (1,)
    network = exports.with_random_variables(dataclasses.replace(network, model=config.model))
    image = np.tile(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), (1, 10, 1))
    with jax.enable_x64(True):
        whole = Predictor.from_network(network, config, size=(64, 640))(image, probabilities=True)
        slid = Predictor.from_network(network, config, window=(64, 384))(image, probabilities=True)
    difference = np.abs(whole.probabilities - slid.probabilities).max(axis=(0, 2))
    assert np.ptp(whole.probabilities) > 0.1
    assert difference[:224].max() < 1e-9  # float64, sums in another order
    assert difference[-224:].max() < 1e-9
    assert 1e-6 < difference[224:-224].max() < 1  # where neither window sees enough context
    np.testing.assert_allclose(slid.probabilities.sum(axis=-1), 1, rtol=1e-9)


def test_windows_compile_one_program_for_images_of_all_sizes(trained, caplog):
    predictor = Predictor.from_pretrained(trained, window=(48, 64))
    with jax.log_compiles():
        masks = label_maps(predictor([photo(100, 150), photo(30, 20), photo(48, 64), photo(130, 40)]))
    assert [mask.shape for mask in masks] == [(100, 150), (30, 20), (48, 64), (130, 40)]
    assert compilations(caplog) == 2
    confident = predictor(photo(100, 150), confidence=True)
    assert np.array_equal(confident.label_map, masks[0])
    full = predictor(photo(100, 150), probabilities=True)
    np.testing.assert_array_equal(confident.confidence, full.probabilities.max(axis=-1))


def test_windows_of_a_row_are_split_over_devices(trained, monkeypatch):
    image = photo(100, 400)
    options = {"probabilities": True, "confidence": True}
    split = Predictor.from_pretrained(trained, window=(48, 64))(image, **options)
    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices()[:1])
    alone = Predictor.from_pretrained(trained, window=(48, 64), batch_size=1)(image, **options)
    pairs = Predictor.from_pretrained(trained, window=(48, 64), batch_size=2)(image, **options)
    np.testing.assert_array_equal(split.probabilities, alone.probabilities)
    np.testing.assert_array_equal(split.label_map, alone.label_map)
    # float32; batches of two are summed in another order.
    np.testing.assert_allclose(pairs.probabilities, alone.probabilities, rtol=0, atol=1e-5)


def test_windows_with_other_variables_are_not_compiled_again(trained, caplog):
    predictor, image = Predictor.from_pretrained(trained, window=(48, 64)), photo(100, 150)
    before = predictor(image, probabilities=True).probabilities
    with jax.log_compiles():
        other = predictor.with_variables(jax.tree.map(lambda leaf: -leaf, predictor._variables))
        caplog.clear()  # of the negation
        after = other(image, probabilities=True).probabilities
    assert compilations(caplog) == 0
    assert not np.allclose(after, before)


def test_smoothing_averages_the_logits_of_frames(predictor):
    one, other = photo(46, 65), photo(46, 65)[:, ::-1].copy()
    expected = label_maps(predictor([one, other]))
    assert not np.array_equal(*expected)
    plain, slow = predictor.start_video(), predictor.start_video(smoothing=1e-6)
    assert all(np.array_equal(plain(frame), mask) for frame, mask in zip((one, other), expected, strict=True))
    assert all(np.array_equal(slow(frame), expected[0]) for frame in (one, other, other))
    half = predictor.start_video(smoothing=0.5)
    assert np.array_equal(half(one), expected[0])
    for _ in range(40):
        label_map = half(other)
    assert np.array_equal(label_map, expected[1])  # the rest of the first frame is rounded away
    for alpha in (0, 1.1):
        with pytest.raises(UserError, match=f"^smoothing {alpha} must be above 0 and at most 1"):
            predictor.start_video(smoothing=alpha)


# ---- Files ----


def _save_kinds(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Saves one image of every kind that cameras and tools write. Returns their upright (height, width)."""
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
    exif[0x0112] = 6  # rotated by 90 degrees
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


def test_a_mask_file_has_the_predicted_class_ids_and_the_colors_of_the_classes(predictor, tmp_path):
    Image.fromarray(photo(33, 47)).save(tmp_path / "a.png")
    mask_path, _ = predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
    label_map = predictor(photo(33, 47)).label_map
    with Image.open(mask_path) as mask:
        assert np.array_equal(np.asarray(mask), label_map)
        assert np.array_equal(np.asarray(mask.convert("RGB")), SYNTHETIC.color_table()[label_map])


def test_a_rotated_image_is_labeled_upright(predictor, tmp_path):
    upright = photo(45, 31)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "side.png", exif=exif)
    mask_path, _ = predict_files(predictor, [tmp_path / "side.png"], tmp_path / "out")
    with Image.open(mask_path) as mask:
        assert np.array_equal(np.asarray(mask), predictor(upright).label_map)


# ---- Errors ----


def test_an_output_folder_that_is_a_file_is_refused(predictor, tmp_path):
    Image.fromarray(photo(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=f"^cannot create --output {tmp_path / 'out'}: File exists"):
        predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_a_run_is_refused(tmp_path, exists):
    workdir = tmp_path / "run"
    if exists:
        workdir.mkdir()
    with pytest.raises(UserError, match="run .*config.json" if exists else "^.*run does not exist; expected the name"):
        Predictor.from_pretrained(workdir)
    assert list(tmp_path.rglob("*")) == ([workdir] if exists else [])
