"""Exported files in their own runtimes: TensorFlow, LiteRT and onnxruntime compute the same as JAX."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from deeplab_jax import data, export, pretrained
from deeplab_jax.errors import UserError
from deeplab_jax.export import ExportOptions
from deeplab_jax.export.program import make_program
from deeplab_jax.pretrained import PretrainedNetwork, bundle
from tests.support import exports

# Packages that write and run each format.
PACKAGES = {
    "stablehlo": (),
    "savedmodel": ("tensorflow",),
    "tflite": ("tensorflow", "ai_edge_litert"),
    "onnx": ("onnx", "onnxruntime"),
}


def _parameter(file_format: str):
    missing = [name for name in PACKAGES[file_format] if importlib.util.find_spec(name) is None]
    skip = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: the extra `runtimes`")
    return pytest.param(file_format, marks=skip)


every_format = pytest.mark.parametrize("file_format", [_parameter(name) for name in PACKAGES])
every_runtime = pytest.mark.parametrize("file_format", [_parameter(name) for name in PACKAGES if name != "stablehlo"])


def write(network: PretrainedNetwork, file_format: str, folder: pathlib.Path, *arguments: str) -> pathlib.Path:
    """Exports with the command, in a separate process, since TensorFlow warns and logs a lot."""
    bundle.save(network, folder / "network")
    words = ["--to", file_format, "--preset", str(folder / "network"), "--output", str(folder / "net"), *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "deeplab_jax", "export", *words],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "net"


@pytest.fixture(scope="module")
def network() -> PretrainedNetwork:
    return exports.network(**exports.TINY_RESNET)


@every_runtime
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="sigmoid", marks=pytest.mark.slow),
        pytest.param(
            {
                "lraspp_gate": "hard_sigmoid",
                "image_pooling_window": (33, 33),
                "image_pooling_stride": (1, 2),
                "align_corners": True,
            },
            id="windows",
        ),
    ],
)
def test_logits_of_mobilenet_v3_and_lraspp_equal_those_of_jax(file_format, fields, tmp_path):
    network = exports.network(**exports.TINY_LRASPP, **fields)
    path = write(network, file_format, tmp_path, "--size", "64x97")
    images = exports.images(1, 64, 97)
    logits, expected = exports.run_exported(file_format, path, images), exports.logits(network, images)
    # Float32 rounding of other kernels.
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 0.5


@every_runtime
@pytest.mark.parametrize(
    "fields",
    [exports.TINY_MOBILENET, pytest.param(exports.SEGFORMER, marks=pytest.mark.slow)],
    ids=lambda fields: fields["backbone"],
)
def test_logits_equal_those_of_jax(file_format, fields, tmp_path):
    network = exports.network(**fields)
    path = write(network, file_format, tmp_path)
    images = exports.images(2, 33, 47)
    logits, expected = exports.run_exported(file_format, path, images), exports.logits(network, images)
    assert (logits.dtype, logits.shape) == (np.float32, (2, 33, 47, 6))
    # Float32 rounding of other kernels, for logits up to about 10.
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 1
    values = json.loads(export.metadata_path(file_format, path).read_text())
    assert values["format"] == file_format
    assert values["input"]["shape"][1:] == [33, 47, 3]


@every_runtime
def test_labels_of_uint8_images_equal_those_of_jax(file_format, network, tmp_path):
    path = write(network, file_format, tmp_path, "--uint8", "--argmax")
    images = exports.images(2, 33, 47, np.uint8)
    labels = exports.run_exported(file_format, path, images)
    assert (labels.dtype, labels.shape) == (np.uint8, (2, 33, 47))
    assert len(np.unique(labels)) > 2
    assert np.mean(labels == exports.logits(network, images).argmax(-1)) > 0.999  # a tie may be rounded away


@pytest.mark.slow  # TensorFlow starts slowly, twice
@pytest.mark.parametrize("file_format", [_parameter("savedmodel")])
def test_a_saved_model_of_any_size_accepts_every_size(file_format, tmp_path):
    network = exports.network(**exports.TINY_MOBILENET)
    path = write(network, file_format, tmp_path, "--size", "any")
    images = exports.images(1, 40, 35)
    logits = exports.run_exported(file_format, path, images)
    np.testing.assert_allclose(logits, exports.logits(network, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("file_format", [_parameter("savedmodel")])
def test_a_saved_model_contains_the_weights_once(file_format, network, tmp_path):
    path = write(network, file_format, tmp_path)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(make_program(network, ExportOptions()).variables))
    variables = (path / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert weights <= variables < weights + 50_000  # the names and shapes of the variables
    assert (path / "saved_model.pb").stat().st_size < 0.5 * weights  # or: graphs alone


# ---- ONNX ----


@pytest.mark.parametrize("file_format", [_parameter("onnx")])
@pytest.mark.parametrize(
    "fields",
    [
        {"backbone": "resnet18_v1", "decoder": "torchvision", "padding": "symmetric"},
        {"backbone": "mobilenet_v2", "width_multiplier": 0.1, "decoder": "smp", "align_corners": True},
        {"backbone": "resnet10_v1_slim", "decoder": "kerascv", "padding": "same_upper", "output_stride": 32},
        {"backbone": "mobilenet_v2", "width_multiplier": 0.1, "decoder": "none", "classifier_bias": False},
        exports.SEGFORMER,
        exports.SEGFORMER | {"gelu": "tanh"},
        {"backbone": "xception41", "decoder": "separable"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_every_head_decoder_and_padding_is_translated_to_onnx(file_format, fields, tmp_path):
    import onnxruntime

    network = exports.network(**fields)
    export.export_network(network, "onnx", tmp_path / "net.onnx", ExportOptions(size=(48, 40)))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    images = exports.images(2, 48, 40)
    (logits,) = session.run(None, {"images": images})
    expected = exports.logits(network, images)
    # Logits of deep networks with random weights are large.
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * max(1, np.abs(expected).max() / 10))
    described = json.loads(session.get_modelmeta().custom_metadata_map["deeplab_jax"])
    assert described["class_names"] == list(network.label_set.class_names)


@pytest.mark.parametrize("file_format", [_parameter("onnx")])
def test_weights_are_computed_once_and_axes_are_transposed_twice(file_format, tmp_path):
    import onnx

    network = exports.network(**exports.TINY_MOBILENET, image_pooling=False)
    export.export_network(network, "onnx", tmp_path / "net.onnx", ExportOptions(size=(33, 47)))
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert kinds.count("Transpose") == 2  # NHWC to NCHW, and back
    assert kinds.count("Resize") == 2  # in the decoder, and of the logits
    sizes = {"Shape", "Gather"}  # of the batch, which can be any
    assert set(kinds) - sizes <= {
        "Transpose",
        "Conv",
        "Add",
        "Mul",
        "Div",
        "Relu",
        "Clip",
        "Concat",
        "Resize",
        "Identity",
    }


@pytest.mark.parametrize("file_format", [_parameter("onnx")])
@pytest.mark.parametrize(
    "fields",
    [
        exports.TINY_MOBILENET,
        pytest.param(exports.TINY_RESNET, marks=pytest.mark.slow),
        pytest.param(exports.TINY_LRASPP, marks=pytest.mark.slow),
        pytest.param(exports.SEGFORMER, marks=pytest.mark.slow),
    ],
    ids=lambda fields: fields["backbone"],
)
def test_onnx_of_any_size_accepts_every_size(file_format, fields, tmp_path):
    import onnxruntime

    network = exports.network(**fields)
    export.export_network(network, "onnx", tmp_path / "net.onnx", ExportOptions())
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    is_resnet = fields["backbone"].startswith("resnet")  # takes multiples of its strides
    for images in (exports.images(1, 64, 96), exports.images(2, 32, 64) if is_resnet else exports.images(2, 33, 47)):
        (logits,) = session.run(None, {"images": images})
        np.testing.assert_allclose(logits, exports.logits(network, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("file_format", [_parameter("onnx")])
def test_sums_of_norms_and_softmax_keep_their_layout(file_format, tmp_path):
    import onnx

    network = exports.network(**exports.SEGFORMER)
    export.export_network(network, "onnx", tmp_path / "net.onnx", ExportOptions(size=(64, 97)))
    nodes = onnx.load(tmp_path / "net.onnx").graph.node
    sums = [node for node in nodes if node.op_type == "ReduceSum"]
    assert len(sums) == 2 * 30 + 8  # the mean and the variance of each LayerNorm, and each softmax
    # Sums keep their axes, so what they are subtracted from or divide keeps its layout.
    assert all(attribute.i == 1 for node in sums for attribute in node.attribute if attribute.name == "keepdims")
    producers = {node.output[0]: node.op_type for node in nodes}
    assert {producers[node.input[0]] for node in sums} == {"Add", "Mul", "Exp"}


@pytest.mark.parametrize("file_format", [_parameter("onnx")])
def test_an_operation_without_translation_is_named(file_format, network, tmp_path, monkeypatch):
    from deeplab_jax.export import onnx_operations

    monkeypatch.delitem(onnx_operations.TRANSLATIONS, "concatenate")
    with pytest.raises(UserError, match="the operation concatenate of this network cannot be translated to ONNX"):
        export.export_network(network, "onnx", tmp_path / "net.onnx", ExportOptions(size=(33, 47)))
    assert not list(tmp_path.iterdir())


# ---- Real images ----


def _google(shared: pathlib.Path) -> PretrainedNetwork:
    return pretrained.import_file(shared / "weights" / "deeplabv3_mnv2_pascal_quant.tflite", "tflite")


def _efficientnet(shared: pathlib.Path) -> PretrainedNetwork:
    return pretrained.load("deeplab_v3_plus_efficientnet_lite0_pascalvoc")


NETWORKS = {"google_mobilenet_v2": _google, "efficientnet_lite0": _efficientnet}


def real_images(shared: pathlib.Path, size: tuple[int, int], count: int = 10) -> np.ndarray:
    """The first images of VOC's val, resized."""
    folder = shared / "data" / "voc_subset"
    names = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:count]
    images = [data.read_image(folder / "JPEGImages" / f"{name}.jpg") for name in names]
    return np.stack([data.resize_image(image, size) for image in images]).astype(np.float32)


def compare(network: PretrainedNetwork, file_format: str, folder: pathlib.Path, images: np.ndarray) -> dict[str, float]:
    """The largest difference between the logits and those of JAX, and the fraction of equal labels."""
    logits = exports.run_exported(file_format, write(network, file_format, folder), images)
    expected = exports.logits(network, images)
    return {
        "difference": float(np.max(np.abs(logits - expected))),
        "equal_labels": float(np.mean(logits.argmax(-1) == expected.argmax(-1))),
        "largest": float(np.max(np.abs(expected))),
        "classes": len(np.unique(expected.argmax(-1))),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@every_format
def test_ten_images_get_the_labels_of_jax(file_format, name, shared, tmp_path):
    network = NETWORKS[name](shared)
    found = compare(network, file_format, tmp_path, real_images(shared, network.image_size))
    assert found["difference"] < 1e-3, found
    assert found["equal_labels"] >= 0.999, found
    assert found["classes"] > 5  # otherwise agreement would be too easy
