"""A data set of five 16-bit bands from files to training, evaluation, prediction and export."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import deeplab_jax
from deeplab_jax import data, visualization
from deeplab_jax.data.check import check, report_tables
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.tiff import Tiff
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation.evaluator import evaluate_network
from deeplab_jax.export.program import ExportOptions, make_program, metadata
from deeplab_jax.inference import display, files
from deeplab_jax.models import build_model
from deeplab_jax.pretrained import load
from deeplab_jax.training import loop
from deeplab_jax.workdir import layout
from tests.support import bands

tifffile = pytest.importorskip("tifffile", reason="the extra `tiff` is not installed")
SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bands.write_folder(tmp_path_factory.mktemp("raw") / "fields", 10, size=SIZE)


@pytest.fixture(scope="module")
def data_dir(folder, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    prepare("folder", source=folder, data_dir=data_dir, channels=5)
    return data_dir


def configure(config, data_dir):
    config.data.name, config.data.data_dir = "folder", str(data_dir)
    config.data.display_channels = (3, 2, 1)
    return config


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory, compilation_cache, make_tiny_config):
    """The workdir of a run of two steps."""
    workdir = tmp_path_factory.mktemp("run")
    loop.train(configure(make_tiny_config(), data_dir), workdir)
    return workdir


# Files to records


def test_records_keep_every_bit_and_the_rule_is_written_with_them(folder, data_dir):
    source = data.open_source("folder", "train", data_dir=data_dir)
    for i in range(len(source)):
        example = data.decode_example(source[i])
        stored = tifffile.imread(folder / "images" / f"{example['id']}.tif")
        assert example["image"].dtype == np.uint16
        np.testing.assert_array_equal(example["image"], stored)
    values = np.concatenate(
        [example["image"].reshape(-1, 5) for example in map(source.__getitem__, range(len(source)))]
    )
    assert (source.pixels.channels, source.pixels.dtype, source.pixels.value_range) == (5, "uint16", (0, 4095))
    np.testing.assert_allclose(source.pixels.mean, values.mean(axis=0, dtype=np.float64), rtol=1e-12)


def test_tfds_opens_the_records(folder, data_dir):
    tfds = pytest.importorskip("tensorflow_datasets")
    example = tfds.data_source("folder", split="val", data_dir=data_dir)[0]
    name = example["id"] if isinstance(example["id"], str) else example["id"].decode()
    np.testing.assert_array_equal(example["image"], tifffile.imread(folder / "images" / f"{name}.tif"))
    assert example["image"].dtype == np.uint16


def test_check_finds_the_same_rule_in_the_files_and_in_the_records(folder, data_dir):
    raw = check("folder", source=folder, channels=5)
    prepared = check("folder", data_dir=data_dir)
    assert raw.ok
    assert prepared.ok
    assert raw.pixels == prepared.pixels
    assert [raw.splits[split].channels for split in raw.splits] == [
        prepared.splits[split].channels for split in raw.splits
    ]
    titles = [table.title for table in report_tables(raw)]
    assert "train: channels" in titles


def test_images_of_another_bit_depth_or_number_of_bands_are_named(folder, tmp_path):
    bands.write_folder(tmp_path / "mixed", 3, size=SIZE)
    image, _ = bands.scene(2, SIZE)
    path = tmp_path / "mixed" / "images" / "field_2.tif"
    for values, message in (
        ((image >> 4).astype(np.uint8), "5 channels of uint8, but earlier images have uint16"),
        (image[..., :4], "has 4 channels; 5 are expected"),
    ):
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
        report = check("folder", source=tmp_path / "mixed", channels=5)
        (problem,) = [line for split in report.splits.values() for line in split.problems if "field_2" in line]
        assert message in problem


def test_without_channels_the_message_names_the_option(folder, tmp_path):
    with pytest.raises(UserError, match="--channels=5"):
        prepare("folder", source=folder, data_dir=tmp_path)


# Records to scores and masks


def test_training_takes_channels_values_and_statistics_from_the_data_set(run, data_dir):
    model = json.loads((run / "config.json").read_text())["model"]
    pixels = data.open_source("folder", "train", data_dir=data_dir).pixels
    assert (model["in_channels"], model["value_range"]) == (5, [0, 4095])
    np.testing.assert_allclose(model["input_mean"], np.array(pixels.mean) * 255 / 4095, atol=6e-4)  # three decimals
    np.testing.assert_allclose(model["input_std"], np.array(pixels.std) * 255 / 4095, atol=6e-4)


def test_the_network_normalizes_values_as_they_are(run, data_dir):
    """float64 by hand: (value - mean) / std of the data set, in the values of the files."""
    network = load(run)
    model = build_model(network.model, 4)
    image, _ = bands.scene(77, SIZE)
    pixels = data.open_source("folder", "train", data_dir=data_dir).pixels
    expected = (image - np.array(pixels.mean)) / np.array(pixels.std)
    np.testing.assert_allclose(model._normalize(image[None])[0], expected, atol=1e-2)  # three decimals of 255


def test_evaluation_and_prediction_agree(run, data_dir, folder, tmp_path):
    predictor = deeplab_jax.Predictor.from_pretrained(run)
    scores = json.loads((run / "metrics.json").read_text())
    source = data.open_source("folder", "val", data_dir=data_dir)
    examples = [data.decode_example(source[i]) for i in range(len(source))]
    # The protocol pads to other sizes, but this network's prediction is for the size that it was scored at.
    correct = sum(
        np.count_nonzero(predictor(folder / "images" / f"{e['id']}.tif").label_map == e["label"]) for e in examples
    )
    assert scores["pixel_accuracy"] == pytest.approx(correct / sum(e["label"].size for e in examples), abs=1e-9)
    found = evaluate_network(load(run), run, config=layout.read_config(run))
    assert found.values["mean_iou"] == pytest.approx(scores["mean_iou"])


def test_masks_overlays_and_galleries_show_the_chosen_bands(run, folder, tmp_path):
    predictor = deeplab_jax.Predictor.from_pretrained(run)
    path = folder / "images" / "field_0.tif"
    files.predict_files(predictor, [path], tmp_path / "out")
    mask = np.asarray(Image.open(tmp_path / "out" / "field_0_mask.png"))
    image, _ = bands.scene(0, SIZE)
    np.testing.assert_array_equal(mask, predictor(image).label_map)
    drawn = np.rint(image[..., [3, 2, 1]] * (255 / 4095)).astype(np.uint8)
    np.testing.assert_array_equal(predictor.draw(image), drawn)
    expected = visualization.add_legend(
        visualization.overlay(drawn, mask, predictor.label_set), mask, predictor.label_set
    )
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "field_0_overlay.png")), expected)
    assert (run / "gallery.png").is_file()


def test_large_tiled_tiffs_are_predicted_by_windows_without_being_read_at_once(run, tmp_path, monkeypatch):
    image, _ = bands.scene(5, 100)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", planarconfig="contig", tile=(16, 16))
    predictor = deeplab_jax.Predictor.from_pretrained(run, window=(32, 32))
    expected = predictor(image).label_map
    monkeypatch.setattr("deeplab_jax.data.channels.LAZY_PIXELS", 5000)
    opened = predictor.read(tmp_path / "a.tif")
    assert isinstance(opened, data.LazyTiff)
    largest = 0
    read = Tiff.read

    def measure(*arguments):
        nonlocal largest
        values = read(*arguments)
        largest = max(largest, values.shape[0] * values.shape[1])
        return values

    monkeypatch.setattr(Tiff, "read", measure)
    np.testing.assert_array_equal(predictor(opened).label_map, expected)
    assert largest <= 32 * 32
    monkeypatch.setattr("deeplab_jax.inference.display._LONGEST", 50)
    files.predict_files(predictor, [tmp_path / "a.tif"], tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a_mask.png")), expected)
    drawing, labels = display.reduce_for_display(opened, expected, predictor.draw)
    assert drawing.shape == (50, 50, 3)
    assert labels.shape == (50, 50)
    blocks = predictor.draw(image).reshape(50, 2, 50, 2, 3).astype(float).mean(axis=(1, 3))
    np.testing.assert_allclose(drawing, blocks, atol=1)
    with pytest.raises(UserError, match="100 x 100 pixels, more than 0.009 million"):
        predictor.read(tmp_path / "a.tif", max_pixels=9000)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("photo.png", "has 3 channels; 5 are expected"),
        (Image.new("RGB", (8, 8)), "is a Image; the network takes 5 channels: pass a path or an array"),
        (np.zeros((8, 8, 5), np.uint8), "has 8 bits per channel, but the network takes values from 0 to 4095"),
    ],
)
def test_other_images_are_refused_in_one_line(run, tmp_path, image, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    image = tmp_path / image if isinstance(image, str) else image
    with pytest.raises(UserError, match=message):
        deeplab_jax.Predictor.from_pretrained(run)(image)


def test_what_is_8_bit_rgb_alone_says_so(run, data_dir, make_tiny_config, tmp_path):
    predictor = deeplab_jax.Predictor.from_pretrained(run)
    with pytest.raises(UserError, match="videos have 8-bit RGB, but the network takes 5 channels"):
        predictor.start_video()
    with pytest.raises(UserError, match="a range of values is set, but the network takes values from 0 to 4095"):
        predictor.read(tmp_path / "a.tif", value_range=(0, 1))
    config = configure(make_tiny_config(), data_dir)
    config.data.color_jitter = 0.2
    with pytest.raises(
        UserError, match=r"data\.color_jitter=0\.2 changes the colors of 8-bit RGB, but folder has 5 ch"
    ):
        loop.train(config, tmp_path / "run")
    config.data.color_jitter, config.model.in_channels = 0.0, 4
    with pytest.raises(UserError, match=r"model\.in_channels=4, but the images of folder have 5; leave it out"):
        loop.train(config, tmp_path / "run")
    config.model.in_channels, config.data.display_channels = 3, (0, 1, 5)
    with pytest.raises(UserError, match="must be three channels of 0 to 4"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nothing was computed


def test_a_network_of_other_channels_is_not_evaluated_on_the_data_set(run, tmp_path):
    root = bands.write_folder(tmp_path / "fields", 3, size=SIZE)
    for path in (root / "images").iterdir():
        Image.new("RGB", (SIZE, SIZE)).save(path.with_suffix(".png"))
        path.unlink()
    prepare("folder", source=root, data_dir=tmp_path)
    config = layout.read_config(run)
    config.data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match="takes images of 5 channels, but those of folder have 3; prepare the data set"):
        evaluate_network(load(run), run, config=config)


def test_exports_carry_channels_and_values(run):
    network = load(run)
    program = make_program(network, ExportOptions(size=(SIZE, SIZE), batch=1))
    described = metadata(network, program, "stablehlo")["input"]
    assert described["shape"] == [1, SIZE, SIZE, 5]
    assert described["value_range"] == [0, 4095]
    assert described["contents"] == "range 0-4095; do not normalize"
    image, _ = bands.scene(0, SIZE)
    model = build_model(network.model, 4)
    expected, _ = jax.jit(lambda v, x: model.apply(v, x, train=False))(network.variables, image[None])
    found = jax.jit(program.function)(image[None].astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4)  # float32 in another order
    with pytest.raises(UserError, match="values from 0 to 4095, which uint8 does not hold; export float32"):
        make_program(network, ExportOptions(uint8=True))


# Large images


@pytest.mark.parametrize("channels", [5, None])
def test_large_images_become_tiles_that_cover_every_pixel_once(tmp_path, channels, monkeypatch):
    root = bands.write_folder(tmp_path / "fields", 2, size=100, tile=(16, 16))
    if channels is None:
        for path in (root / "images").iterdir():
            values = tifffile.imread(path)
            Image.fromarray((values[..., :3] >> 4).astype(np.uint8)).save(path.with_suffix(".png"))
            path.unlink()
    largest, read = [], Tiff.read

    def measure(*arguments):
        values = read(*arguments)
        largest.append(values.shape[0] * values.shape[1])
        return values

    options = {"channels": channels, "tile_size": (48, 64)}
    report = check("folder", source=root, **options)
    assert report.ok
    monkeypatch.setattr(Tiff, "read", measure)
    prepare("folder", source=root, data_dir=tmp_path / "data", **options)
    assert sorted(largest[1:], reverse=True)[:1] == ([34 * 50] if channels else [])  # after the first, for the dtype
    for split in ("train", "val"):
        source = data.open_source("folder", split, data_dir=tmp_path / "data")
        examples = [data.decode_example(source[i]) for i in range(len(source))]
        (name,) = {example["id"].rsplit("_", 2)[0] for example in examples}
        image, label = bands.scene(int(name[-1]), 100)
        image = image if channels else (image[..., :3] >> 4).astype(np.uint8)
        seen = np.zeros(label.shape, int)
        for example in examples:
            top, left = map(int, example["id"].split("_")[-2:])
            part = np.s_[top : top + example["label"].shape[0], left : left + example["label"].shape[1]]
            np.testing.assert_array_equal(example["image"], image[part])
            np.testing.assert_array_equal(example["label"], label[part])
            seen[part] += 1
        assert (seen == 1).all()
        assert len(examples) == 6
        assert report.splits[split].num_examples == 6
