"""The script beside an exported network labels images as `Predictor` does, without this package."""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import Predictor, export, pretrained
from deeplab_jax.data.sources.synthetic import draw_scene
from deeplab_jax.export import ExportOptions
from deeplab_jax.pretrained import PretrainedNetwork
from tests.support import exports

RUN_SCRIPT = pathlib.Path(exports.__file__).with_name("run_script.py")

# Each protocol with the options of its file.
CASES = {
    "guide_uint8_batch": ({"protocol": "guide"}, {"size": (33, 47), "uint8": True, "batch": 2}),
    "whole": ({"protocol": "whole"}, {"size": (65, 65)}),
}
SLOW_CASES = {
    "squeeze": ({"protocol": "squeeze"}, {"size": (33, 47)}),
    "squeeze_antialiased": ({"protocol": "squeeze", "feeding": {"data.antialias": True}}, {"size": (33, 47)}),
    "whole_any": ({"protocol": "whole", "image_size": None}, {}),
    "keep_ratio_any": (
        {"protocol": "keep_ratio", "image_size": (64, 128), "feeding": {"eval.size_multiple": 32}},
        {},
    ),
}


def run_scripts(triples: list[tuple[pathlib.Path, pathlib.Path, pathlib.Path]]) -> None:
    """Runs scripts on images in a process that cannot import deeplab_jax."""
    flags = os.environ.get("XLA_FLAGS", "").replace("device_count=8", "device_count=1")
    done = subprocess.run(
        [sys.executable, str(RUN_SCRIPT), *(str(path) for triple in triples for path in triple)],
        capture_output=True, text=True, timeout=900, check=False, env=os.environ | {"XLA_FLAGS": flags},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def predictor(network: PretrainedNetwork) -> Predictor:
    return Predictor.from_network(network, pretrained.preset_config(network))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[pathlib.Path]:
    """A landscape image larger than the networks' input, and a small portrait one that EXIF rotates."""
    folder = tmp_path_factory.mktemp("images")
    scenes = [draw_scene(np.random.default_rng(seed), size)[0] for seed, size in enumerate([(90, 120), (40, 52)])]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.fromarray(scenes[0]).save(folder / "large.jpg", quality=95)
    Image.fromarray(scenes[1]).save(folder / "small.jpg", quality=95, exif=rotated)
    return [folder / "large.jpg", folder / "small.jpg"]


def label(cases, images, folder: pathlib.Path) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """By case, for each image the labels of the script and those of `Predictor`."""
    network = exports.network(**exports.TINY_MOBILENET)
    triples, expected = [], {}
    for case, (fields, options) in cases.items():
        fed = dataclasses.replace(network, **fields)
        export.export_network(fed, "stablehlo", folder / case, ExportOptions(**options))
        if "size" in options:
            fed = dataclasses.replace(fed, image_size=options["size"])
        expected[case] = [prediction.label_map for prediction in predictor(fed)(images)]
        triples += [(folder / f"{case}.predict.py", image, folder / f"{case}_{image.stem}.png") for image in images]
    run_scripts(triples)
    found = iter([np.asarray(Image.open(mask)) for _, _, mask in triples])
    return {case: [(next(found), labels) for labels in of_case] for case, of_case in expected.items()}


@pytest.mark.parametrize("cases", [CASES, pytest.param(SLOW_CASES, marks=pytest.mark.slow)], ids=["some", "others"])
def test_the_script_gives_the_labels_of_predict(cases, images, tmp_path):
    labeled = label(cases, images, tmp_path)
    for found, expected in (pair for of_case in labeled.values() for pair in of_case):
        assert (found.shape, found.dtype) == (expected.shape, np.uint8)
        assert len(np.unique(expected)) > 1
        # Where two classes are equally probable up to rounding, either label is right.
        assert np.count_nonzero(found != expected) <= 2


def test_the_mask_has_the_palette_of_the_classes(images, tmp_path):
    network = dataclasses.replace(exports.network(**exports.TINY_MOBILENET), protocol="squeeze")
    export.export_network(network, "stablehlo", tmp_path / "net", ExportOptions(size=(33, 47), argmax=True))
    run_scripts([(tmp_path / "net.predict.py", images[0], tmp_path / "mask.png")])
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.getpalette()[: 3 * 6] == [value for color in network.label_set.palette for value in color]
        # The file returns labels at the size of the network's input, so borders are coarser.
        assert np.mean(np.asarray(mask) == predictor(network)(images[0]).label_map) > 0.9


@pytest.mark.parametrize(
    "fields",
    [
        {"protocol": "windows", "image_size": (33, 33)},
        {"protocol": "keep_ratio", "image_size": (33, 47)},
    ],
    ids=lambda fields: fields["protocol"],
)
def test_a_protocol_that_one_call_cannot_reproduce_has_no_script(fields, tmp_path):
    network = dataclasses.replace(exports.network(**exports.TINY_MOBILENET), **fields)
    export.export_network(network, "stablehlo", tmp_path / "net", ExportOptions(size=(33, 47), batch=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "net.json"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime: the extra `runtimes`")
def test_scripts_of_the_shipped_network_label_forty_photos_as_predict_does(shared, tmp_path):
    network = pretrained.load("deeplab_v3_plus_efficientnet_lite0_pascalvoc")
    export.export_network(network, "onnx", tmp_path / "net.onnx", ExportOptions(size=network.image_size))
    folder = shared / "data" / "voc_subset"
    names = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[::11][:40]
    photos = [folder / "JPEGImages" / f"{name}.jpg" for name in names]
    run_scripts([(tmp_path / "net.onnx.predict.py", photo, tmp_path / f"{photo.stem}.png") for photo in photos])
    differing = 0
    for photo, prediction in zip(photos, predictor(network).map(photos, probabilities=True), strict=True):
        is_other = np.asarray(Image.open(tmp_path / f"{photo.stem}.png")) != prediction.label_map
        best = np.sort(prediction.probabilities[is_other], axis=-1)
        assert np.all(best[:, -1] - best[:, -2] < 1e-5)  # tied up to float32 rounding
        differing += np.count_nonzero(is_other)
    assert differing <= 40  # of 7 million pixels
