"""Imported networks of timm equal the originals, block by block."""

import json

import numpy as np
import pytest
import safetensors.numpy

from deeplab_jax.config import base_config
from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.importers import timm
from tests.pretrained.importers.torch_networks import Golden, assert_equal, compute


@pytest.fixture(scope="module")
def golden():
    return Golden("timm")


def zeros(golden, network):
    return {name: np.zeros(shape, np.float32) for name, shape in golden.shapes(network).items()}


@pytest.mark.parametrize(
    ("network", "backbone", "width"),
    [("resnet50", "resnet50_v1", 1.0), ("mobilenetv2_050", "mobilenet_v2_full", 0.5)],
)
def test_every_block_equals_timms(network, backbone, width, golden):
    imported = timm.from_state_dict(golden.state_dict(network))
    assert (imported.model.backbone, imported.model.width_multiplier) == (backbone, width)
    assert imported.label_set is None
    imported.model.output_stride = 32  # as classification networks run
    wanted = golden.samples(network)
    assert_equal(compute(imported, wanted, network, (65, 97)), wanted)


@pytest.mark.parametrize(
    ("network", "size", "output_stride"),
    [
        ("xception41", (65, 97), 16),
        pytest.param("xception65", (64, 96), 8, marks=pytest.mark.slow),
        pytest.param("xception71", (65, 97), 32, marks=pytest.mark.slow),
    ],
)
def test_every_unit_of_xception_equals_timms(network, size, output_stride, golden):
    imported = timm.from_state_dict(golden.state_dict(network))
    assert (imported.model.backbone, imported.model.backbone_norm_epsilon) == (network, 1e-3)
    assert imported.model.input_mean == imported.model.input_std == (127.5, 127.5, 127.5)
    imported.model.output_stride = output_stride
    imported.model.atrous_rates_stride = imported.model.output_stride
    wanted = golden.samples(network)
    assert len(wanted) == {"xception41": 13, "xception65": 21, "xception71": 23}[network]
    assert_equal(compute(imported, wanted, network, size), wanted)


@pytest.mark.parametrize(
    ("network", "backbone", "width"),
    [
        ("resnet101", "resnet101_v1", 1.0),
        ("mobilenetv2_100", "mobilenet_v2_full", 1.0),
        ("mobilenetv2_140", "mobilenet_v2_full", 1.4),
    ],
)
def test_every_array_of_other_variants_is_accounted_for(network, backbone, width, golden):
    imported = timm.from_state_dict(zeros(golden, network))
    assert (imported.model.backbone, imported.model.width_multiplier) == (backbone, width)
    assert "0 missing, 0 unused" in imported.report[0]
    assert sum(int(line.split()[0]) for line in imported.report) == len(golden.shapes(network))  # imported and skipped


def test_resnets_use_torchvisions_names_and_shapes(golden):
    assert golden.shapes("resnet50") == Golden("torchvision").shapes("resnet50")


def test_normalization_comes_from_the_config_next_to_the_file(golden, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(zeros(golden, "mobilenetv2_050"), path)
    default = base_config().model
    assert timm.load(path).model.input_mean == default.input_mean

    config = {"architecture": "mobilenetv2_050", "pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.5] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = timm.load(path).model
    assert model.input_mean == default.input_mean
    assert model.input_std == (127.5, 127.5, 127.5)

    (tmp_path / "config.json").write_text('{"_model_class": "DeepLabV3Plus"}')
    with pytest.raises(UserError, match="config.json is not a config of timm .*move model.safetensors to a folder"):
        timm.load(path)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("mobilenetv2_110d", "conv_head.weight has shape .1280, 352, 1, 1., which does not fit"),
        ("resnet50d", "the file is not a supported network of timm .*; it has conv1.0.weight"),
        ("xception65p", "the file is not a supported network of timm"),
        ("resnext50_32x4d", "layer1.0.bn1.running_mean has shape .128,., which does not fit"),
    ],
)
def test_unsupported_variants_are_refused_in_one_line(network, message, golden):
    with pytest.raises(UserError, match=message) as caught:
        timm.from_state_dict(zeros(golden, network))
    assert "\n" not in str(caught.value)
