"""`Predictor` with LiteRT and onnxruntime: the labels of XLA, and the errors of both."""

import subprocess
import sys

import numpy as np
import pytest

from deeplab_jax import data, pretrained
from deeplab_jax.errors import UserError
from deeplab_jax.export import runtimes
from deeplab_jax.inference.predictor import Predictor
from deeplab_jax.inference.runtime import find_runtime
from deeplab_jax.models import build_model
from tests.conftest import scene
from tests.support import exports

# A conversion to TFLite starts another process, which imports TensorFlow.
every_runtime = pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("litert", marks=pytest.mark.slow)])


def require(runtime: str) -> None:
    if not find_runtime(runtime).is_installed():
        pytest.skip(f"{runtime} is not installed: the extra `runtimes`")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache for all tests of this module."""
    folder = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        yield folder


def photo(height: int, width: int) -> np.ndarray:
    image, _ = scene(3, 40, 56)
    return data.resize_image(image, (height, width))


@every_runtime
def test_a_predictor_labels_as_with_xla(runtime, cache, capfd):
    require(runtime)
    network = exports.network(**exports.TINY_RESNET)
    config = pretrained.preset_config(network)
    config.eval.protocol, config.data.image_size = "squeeze", (33, 47)
    xla = Predictor.from_network(network, config, flip=True)
    other = Predictor.from_network(network, config, flip=True, runtime=runtime)
    image = photo(45, 60)
    expected, found = (predictor(image, probabilities=True) for predictor in (xla, other))
    assert len(np.unique(expected.label_map)) > 1
    assert np.mean(found.label_map == expected.label_map) > 0.999  # a tie may be rounded away
    # Float32 rounding of other kernels.
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    assert len(list(cache.glob(f"exported/resnet10_v1_slim-33x47-*.{runtime}"))) == 1
    assert capfd.readouterr().err == ""  # TensorFlow and LiteRT write about themselves


@every_runtime
@pytest.mark.slow
def test_forty_images_get_the_labels_of_xla(runtime, cache, shared):
    require(runtime)
    folder = shared / "data" / "voc_subset"
    names = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:40]
    images = [data.read_image(folder / "JPEGImages" / f"{name}.jpg") for name in names]
    network = pretrained.load("deeplab_v3_plus_efficientnet_lite0_pascalvoc")
    config = pretrained.preset_config(network)
    expected, found = (
        np.concatenate([result.label_map.ravel() for result in predictor.map(images)])
        for predictor in (Predictor.from_network(network, config, runtime=each) for each in ("xla", runtime))
    )
    assert len(np.unique(expected)) > 10
    assert np.mean(found == expected) > 0.9999


def test_a_package_that_cannot_be_imported_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = r"^onnxruntime cannot be imported \(.*\); install the extra: pip install 'deeplab_jax\[run"
    with pytest.raises(UserError, match=message):
        runtimes.OnnxRuntime().load(b"", threads=1)


def test_a_failed_conversion_reports_the_last_line_of_its_process(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: too large\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    network = exports.network(**exports.TINY_RESNET)
    with pytest.raises(UserError, match="^the network cannot be converted to TFLite: ValueError: too large$"):
        runtimes.LiteRT().export(build_model(network.model, 6), network.variables, (33, 47))
