"""float16 and int8 files, and the comparison of exported files with JAX."""

import dataclasses
import math
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from deeplab_jax import export
from deeplab_jax.errors import UserError
from deeplab_jax.export import ExportOptions, verification
from deeplab_jax.export.program import make_program
from deeplab_jax.pretrained import PretrainedNetwork, bundle
from tests.export.test_export_runtimes import _parameter, write
from tests.support import exports

SIZE = (64, 96)

only_onnx = pytest.mark.parametrize("file_format", [_parameter("onnx")])
only_tflite = pytest.mark.parametrize("file_format", [_parameter("tflite")])


@pytest.fixture(scope="module")
def network() -> PretrainedNetwork:
    net = exports.network(**exports.TINY_MOBILENET)
    return dataclasses.replace(net, protocol="squeeze", image_size=SIZE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images with patches of random colors."""
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(exports.images(4, *SIZE, np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def onnx_file(network, folder, **options):
    """Exports to ONNX. Returns the path and the initializers."""
    import onnx

    calibration = export.read_inputs(network, ExportOptions(size=SIZE), folder, most=4) if folder else ()
    path = options.pop("path")
    export.export_network(network, "onnx", path, ExportOptions(size=SIZE, **options), calibration=calibration)
    return onnx.load(path)


def parameter_bytes(network) -> int:
    """Bytes of the variables with BatchNorm folded into kernels."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(make_program(network, ExportOptions()).variables))


# ---- ONNX ----


@only_onnx
def test_onnx_contains_the_weights_once(file_format, network, tmp_path):
    model = onnx_file(network, None, path=tmp_path / "net.onnx")
    stored = sum(len(array.raw_data) for array in model.graph.initializer)
    assert stored < 1.02 * parameter_bytes(network)


@only_onnx
def test_float16_halves_an_onnx_file(file_format, network, tmp_path):
    model = onnx_file(network, None, path=tmp_path / "net.onnx", quantize="float16")
    stored = sum(len(array.raw_data) for array in model.graph.initializer)
    assert 0.45 * parameter_bytes(network) < stored < 0.55 * parameter_bytes(network)
    options = ExportOptions(size=SIZE, quantize="float16")
    result = export.verify(network, "onnx", tmp_path / "net.onnx", options, export.draw_inputs(network, options, 2))
    # Random layers amplify the rounding of weights; `passed` is for trained networks.
    assert result.equal_labels > 0.99
    assert 1e-5 < result.largest_difference / result.logit_range < 0.05


@only_onnx
def test_int8_onnx_has_integer_kernels_per_channel(file_format, network, photos, tmp_path):
    import onnx

    model = onnx_file(network, photos, path=tmp_path / "net.onnx", quantize="int8")
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in model.graph.initializer}
    producers = {node.output[0]: node for node in model.graph.node}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for node in convolutions:
        given, kernel = (producers[name] for name in node.input[:2])
        assert (given.op_type, kernel.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert arrays[kernel.input[0]].dtype == np.int8
        assert arrays[kernel.input[1]].shape == (len(arrays[kernel.input[0]]),)
    assert len(convolutions) > 50
    assert "deeplab_jax" in {entry.key for entry in model.metadata_props}

    options = ExportOptions(size=SIZE, quantize="int8")
    inputs = export.read_inputs(network, options, photos, most=4)
    result = export.verify(network, "onnx", tmp_path / "net.onnx", options, inputs)
    assert result.equal_labels > 0.8, result  # random weights tell classes apart less than trained ones


# ---- TFLite ----


@only_tflite
def test_int8_tflite_takes_the_pixels_of_uint8_images(file_format, network, photos, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    path = write(network, "tflite", tmp_path, "--quantize", "int8", "--calibration", str(photos), "--uint8", "--argmax")
    interpreter = Interpreter(str(path))
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (given["dtype"], given["quantization"]) == (np.uint8, (1.0, 0))
    assert made["dtype"] == np.uint8
    kernels = [
        tensor for tensor in interpreter.get_tensor_details() if len(tensor["quantization_parameters"]["scales"]) > 1
    ]
    assert kernels
    assert all(tensor["dtype"] in (np.int8, np.int32) for tensor in kernels)  # int32: biases
    images = exports.images(2, *SIZE, np.uint8)
    labels = exports.run_exported("tflite", path, images)
    assert np.mean(labels == exports.logits(network, images).argmax(-1)) > 0.8  # as above


@pytest.mark.slow  # TensorFlow starts slowly
@only_tflite
def test_float16_halves_a_tflite_file(file_format, network, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    path = write(network, "tflite", tmp_path, "--quantize", "float16", "--verify")
    tensors = Interpreter(str(path)).get_tensor_details()
    halves = sum(2 * math.prod(tensor["shape"]) for tensor in tensors if tensor["dtype"] == np.float16)
    assert 0.4 * parameter_bytes(network) < halves < 0.6 * parameter_bytes(network)


@only_onnx
def test_int8_without_onnxruntime_names_the_extra(file_format, network, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(UserError, match=r"int8 needs onnxruntime.*pip install 'deeplab_jax\[runtimes\]'"):
        onnx_file(network, photos, path=tmp_path / "net.onnx", quantize="int8")
    assert not list(tmp_path.iterdir())


# ---- Verification ----


def test_a_file_of_other_weights_does_not_pass(network, tmp_path):
    options = ExportOptions(size=SIZE)
    export.export_network(network, "stablehlo", tmp_path / "net", options)
    inputs = export.draw_inputs(network, options, 2)
    result = export.verify(network, "stablehlo", tmp_path / "net", options, inputs)
    assert result.passed
    assert result.equal_labels > 0.999
    assert result.largest_difference < 1e-3
    kernels = network.variables["params"]["classifier"]
    other = network.variables | {
        "params": network.variables["params"] | {"classifier": jax.tree.map(lambda leaf: 1.01 * leaf, kernels)}
    }
    other = dataclasses.replace(network, variables=other)
    assert not export.verify(other, "stablehlo", tmp_path / "net", options, inputs).passed


def test_labels_count_if_the_file_returns_no_logits(network, tmp_path):
    options = ExportOptions(size=SIZE, argmax=True, uint8=True, batch=2)
    export.export_network(network, "stablehlo", tmp_path / "net", options)
    result = export.verify(network, "stablehlo", tmp_path / "net", options, export.draw_inputs(network, options, 1))
    assert result.passed
    assert result.largest_difference is None
    assert not dataclasses.replace(result, equal_labels=0.998).passed


@pytest.mark.parametrize("file_format", ["tflite", "onnx"])
def test_a_missing_runtime_is_named_with_its_extra(file_format, network, tmp_path, monkeypatch):
    module = {"tflite": "ai_edge_litert.interpreter", "onnx": "onnxruntime"}[file_format]
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "net").touch()
    with pytest.raises(UserError, match=r"cannot be imported.*pip install 'deeplab_jax\[runtimes\]'"):
        export.verify(network, file_format, tmp_path / "net", ExportOptions(size=SIZE), [])


def test_the_command_fails_if_the_file_differs(network, tmp_path, capsys, monkeypatch, compilation_cache):
    from deeplab_jax.cli import main

    bundle.save(network, tmp_path / "net")

    def run(output):
        with pytest.raises(SystemExit) as done:
            main.main(
                ["export", "--to", "stablehlo", "--preset", str(tmp_path / "net"), "--output", str(output), "--verify"]
            )
        return done.value.code, capsys.readouterr().err.splitlines()

    code, lines = run(tmp_path / "one")
    assert code == 0
    assert "100.000% of the labels of 8 images are equal" in lines[-1]
    monkeypatch.setitem(verification.TOLERANCES, None, (1e-4, 1.1))
    code, lines = run(tmp_path / "two")
    assert code == 1
    assert "two differs from the network" in lines[-1]
