"""Export: StableHLO in JAX without this package, descriptions, and errors of every format."""

import dataclasses
import json
import sys

import jax.export
import numpy as np
import pytest

from deeplab_jax import export
from deeplab_jax.cli import main
from deeplab_jax.errors import UserError
from deeplab_jax.export import ExportOptions
from deeplab_jax.export.program import make_program
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.pretrained import PretrainedNetwork, bundle
from tests.support import exports

# Float32 rounding of logits up to about 10.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def network() -> PretrainedNetwork:
    return exports.network(**exports.TINY_RESNET)


@pytest.fixture
def run(capsys, compilation_cache):
    """Runs the command and returns its exit code and the lines on stderr."""

    def run_command(*arguments) -> tuple[int, list[str]]:
        with pytest.raises(SystemExit) as done:
            main.main(["export", *map(str, arguments)])
        return done.value.code, capsys.readouterr().err.splitlines()

    return run_command


# ---- StableHLO ----


def test_jax_alone_runs_stablehlo_of_a_fixed_size_and_any_batch(network, tmp_path):
    export.export_network(network, "stablehlo", tmp_path / "net", ExportOptions(size=(33, 47)))
    images = exports.images(3, 33, 47)
    logits = exports.run_exported("stablehlo", tmp_path / "net", images)
    np.testing.assert_allclose(logits, exports.logits(network, images), **TOLERANCE)
    assert logits.dtype == np.float32
    assert np.ptp(logits) > 1  # otherwise everything would be close


def test_stablehlo_is_lowered_for_cpu_cuda_and_tpu(network, tmp_path):
    export.export_network(network, "stablehlo", tmp_path / "net", ExportOptions(size=(33, 47), batch=2))
    exported = jax.export.deserialize(bytearray((tmp_path / "net").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.in_avals[0].shape == (2, 33, 47, 3)
    with pytest.raises(ValueError, match=r"2.*33.*47"):
        exported.call(exports.images(1, 33, 47))


@pytest.mark.parametrize(
    "fields",
    [
        exports.TINY_MOBILENET,
        exports.TINY_MOBILENET | {"align_corners": True, "padding": "symmetric"},
        pytest.param(exports.SEGFORMER, marks=pytest.mark.slow),
    ],
    ids=["half_pixel", "corners", "segformer"],
)
def test_stablehlo_of_any_size_accepts_every_size(fields, tmp_path):
    net = exports.network(**fields)
    export.export_network(net, "stablehlo", tmp_path / "net", ExportOptions())
    exported = jax.export.deserialize(bytearray((tmp_path / "net").read_bytes()))
    for images in (exports.images(1, 33, 47), exports.images(2, 64, 40)):
        np.testing.assert_allclose(exported.call(images), exports.logits(net, images), **TOLERANCE)


def test_stablehlo_of_a_resnet_of_any_size_accepts_multiples_of_its_strides(network, tmp_path):
    values = export.export_network(network, "stablehlo", tmp_path / "net", ExportOptions())
    assert values["input"]["shape"] == ["batch", "32*rows", "32*columns", 3]
    exported = jax.export.deserialize(bytearray((tmp_path / "net").read_bytes()))
    images = exports.images(2, 64, 32)
    np.testing.assert_allclose(exported.call(images), exports.logits(network, images), **TOLERANCE)
    with pytest.raises(ValueError, match="32"):
        exported.call(exports.images(1, 33, 47))


def test_uint8_images_result_in_labels(network, tmp_path):
    options = ExportOptions(size=(33, 47), argmax=True, uint8=True)
    export.export_network(network, "stablehlo", tmp_path / "net", options)
    images = exports.images(2, 33, 47, np.uint8)
    exported = jax.export.deserialize(bytearray((tmp_path / "net").read_bytes()))
    labels = np.asarray(exported.call(images))
    assert (labels.dtype, labels.shape) == (np.uint8, (2, 33, 47))
    assert len(np.unique(labels)) > 2
    assert np.mean(labels == exports.logits(network, images).argmax(-1)) > 0.999  # a tie may be rounded away
    with pytest.raises(ValueError, match=r"uint8"):
        exported.call(images.astype(np.float32))


def test_exported_programs_are_the_same_on_every_platform(network):
    program = make_program(network, ExportOptions(size=(33, 47), batch=1))
    modules = [
        jax.export.export(jax.jit(program.function), platforms=[platform])(program.images()).mlir_module()
        for platform in ("cpu", "tpu")
    ]
    convolutions = [module.count("stablehlo.convolution") for module in modules]
    assert convolutions[0] == convolutions[1] > 0


# ---- Descriptions ----


def test_a_json_file_describes_input_and_output(network, tmp_path):
    network = dataclasses.replace(network, feeding={"eval.flip": True, "eval.scales": (0.5, 1.0)})
    export.export_network(network, "stablehlo", tmp_path / "deep" / "net.stablehlo", ExportOptions(size=(33, 47)))
    values = json.loads((tmp_path / "deep" / "net.stablehlo.json").read_text())
    assert values["class_names"] == list(SYNTHETIC.class_names)
    assert values["palette"] == [list(color) for color in SYNTHETIC.palette]
    assert values["input"]["shape"] == ["batch", 33, 47, 3]
    assert values["input"]["dtype"] == "float32"
    assert "0-255" in values["input"]["contents"]
    assert values["output"] == {"shape": ["batch", 33, 47, 6], "dtype": "float32", "contents": "logits"}
    assert values["feeding"] == {
        "protocol": "whole", "image_size": [33, 47], "eval.flip": True, "eval.scales": [0.5, 1.0],
    }  # fmt: skip
    written = sorted(path.name for path in (tmp_path / "deep").iterdir())
    assert written == ["net.stablehlo", "net.stablehlo.json", "net.stablehlo.predict.py"]


def test_the_description_of_uint8_images_and_labels(network, tmp_path):
    options = ExportOptions(size=(32, 32), batch=4, argmax=True, uint8=True)
    values = export.export_network(network, "stablehlo", tmp_path / "net", options)
    assert values["input"]["dtype"] == "uint8"
    assert values["output"] == {"shape": [4, 32, 32], "dtype": "uint8", "contents": "class ids"}


# ---- Errors ----


@pytest.mark.parametrize(
    ("file_format", "options", "message"),
    [
        ("tflite", {"batch": 1}, r"^tflite needs a fixed image size, .*give --size HEIGHTxWIDTH$"),
        ("tflite", {"size": (33, 47)}, r"^tflite needs a fixed batch size; give --batch N$"),
        ("stablehlo", {"quantize": "float16"}, r"^stablehlo cannot be quantized to float16; export to tflite or onnx$"),
        ("savedmodel", {"quantize": "int8"}, r"^savedmodel cannot be quantized to int8; export to tflite or onnx$"),
        ("onnx", {"quantize": "int8"}, r"^int8 needs images to calibrate it; give --calibration FOLDER"),
        ("stable_hlo", {}, r"export format 'stable_hlo' does not exist; did you mean stablehlo\?"),
    ],
)
def test_options_that_a_format_does_not_support_are_errors(file_format, options, message, network, tmp_path):
    with pytest.raises(UserError, match=message):
        export.export_network(network, file_format, tmp_path / "net", ExportOptions(**options))
    assert not list(tmp_path.iterdir())


def test_sizes_and_batches_below_one_are_rejected():
    with pytest.raises(UserError, match="the batch size is 0; it must be at least 1"):
        ExportOptions(batch=0)
    with pytest.raises(UserError, match="the image size is 0x32; height and width must be at least 1"):
        ExportOptions(size=(0, 32))


@pytest.mark.parametrize(
    ("file_format", "package"), [("savedmodel", "tensorflow"), ("tflite", "tensorflow"), ("onnx", "onnx")]
)
def test_a_missing_package_is_named_with_its_extra(file_format, package, network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install 'deeplab_jax\[export\]'"):
        export.export_network(network, file_format, tmp_path / "net", ExportOptions(size=(33, 47), batch=1))
    assert not list(tmp_path.iterdir())


def test_a_quantization_that_does_not_exist_is_rejected():
    with pytest.raises(UserError, match=r"quantization 'int_8' does not exist; did you mean int8\?"):
        ExportOptions(quantize="int_8")


def test_a_folder_without_images_cannot_calibrate(network, tmp_path):
    with pytest.raises(UserError, match=r"contains no images$"):
        export.read_inputs(network, ExportOptions(size=(33, 47)), tmp_path, most=3)


def test_a_backbone_alone_is_rejected(network, tmp_path):
    backbone = PretrainedNetwork(network.model, network.variables, None)
    with pytest.raises(UserError, match="a resnet10_v1_slim backbone alone has no classes"):
        export.export_network(backbone, "stablehlo", tmp_path / "net", ExportOptions(size=(33, 47)))


@pytest.mark.parametrize("name", ["net", "net.json", "net.predict.py"])
def test_nothing_is_overwritten(name, network, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name} exists; choose another --output or remove it$"):
        export.export_network(network, "stablehlo", tmp_path / "net", ExportOptions(size=(33, 47)))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


# ---- The command ----


def test_the_command_exports_a_folder_at_its_own_size(network, run, tmp_path):
    bundle.save(network, tmp_path / "net")
    arguments = ("--to", "stablehlo", "--preset", tmp_path / "net", "--output", tmp_path / "net.stablehlo")
    code, lines = run(*arguments, "--uint8", "--argmax")
    assert code == 0, lines
    assert "uint8 images batchx33x47x3 to uint8 class ids batchx33x47" in lines[-2]
    assert (tmp_path / "net.stablehlo").stat().st_size > 10_000
    code, lines = run(*arguments)
    assert (code, len(lines)) == (1, 1)
    assert "net.stablehlo exists; choose another --output" in lines[0]


def test_the_command_exports_a_run(workdir, run, tmp_path):
    code, lines = run(
        "--to", "stablehlo", "--workdir", workdir, "--output", tmp_path / "o", "--size", "40x56", "--batch", "2"
    )
    assert code == 0, lines
    assert json.loads((tmp_path / "o.json").read_text())["input"]["shape"] == [2, 40, 56, 3]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--to", "coreml"), 2, "invalid choice: 'coreml'"),
        (("--to", "onnx", "--size", "33"), 2, "'33' is not HEIGHTxWIDTH"),
        (("--to", "onnx", "--batch", "many"), 2, "'many' is not an integer between 1 and"),
        (("--to", "tflite", "--size", "any"), 1, "tflite needs a fixed image size"),
        (("--to", "onnx", "--quantize", "int4"), 2, "invalid choice: 'int4'"),
        (("--to", "onnx", "--quantize", "int8"), 1, "--quantize int8 and --calibration FOLDER belong together"),
        (("--to", "onnx", "--calibration", "."), 1, "--quantize int8 and --calibration FOLDER belong together"),
        (("--to", "onnx", "--quantize", "int8", "--calibration", "none"), 1, "none is not a folder of images"),
        (("--to", "tflite", "--batch", "any"), 1, "tflite needs a fixed batch size"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, code, message, network, run, tmp_path):
    bundle.save(network, tmp_path / "net")
    result, lines = run(*arguments, "--preset", tmp_path / "net", "--output", tmp_path / "o")
    assert (result, len(lines)) == (code, 1)
    assert message in lines[0]
