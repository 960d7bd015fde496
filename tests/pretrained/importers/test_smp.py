"""Imported networks of segmentation_models.pytorch equal the originals, block by block."""

import json

import numpy as np
import pytest
import safetensors.numpy

from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC
from deeplab_jax.pretrained.importers import smp
from tests.pretrained.importers.torch_networks import Golden, assert_equal, compute


@pytest.fixture(scope="module")
def golden():
    return Golden("smp")


def zeros(golden, network):
    return {name: np.zeros(shape, np.float32) for name, shape in golden.shapes(network).items()}


@pytest.mark.parametrize(
    ("network", "backbone", "output_stride", "size"),
    [
        ("resnet50", "resnet50_v1", 16, (32, 640)),
        ("mobilenet_v2_stride8", "mobilenet_v2_full", 8, (32, 320)),
    ],
)
def test_logits_and_every_block_equal_smps(network, backbone, output_stride, size, golden):
    imported = smp.from_state_dict(golden.state_dict(network), output_stride=output_stride)
    assert imported.model.backbone == backbone
    wanted = golden.samples(network)
    computed = compute(imported, wanted, network, size)
    assert_equal(computed, wanted)
    np.testing.assert_allclose(computed["logits"], wanted["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("encoder", ["resnet34", "resnet152"])
def test_every_array_of_other_encoders_is_accounted_for(encoder, golden):
    imported = smp.from_state_dict(zeros(golden, encoder))
    assert imported.model.backbone == f"{encoder}_v1"
    assert imported.label_set.num_classes == 5
    assert "0 missing, 0 unused" in imported.report[0]
    assert sum(int(line.split()[0]) for line in imported.report) == len(golden.shapes(encoder))  # imported and skipped


def test_one_class_becomes_background_and_foreground(golden):
    arrays = zeros(golden, "resnet18_dense")
    arrays["segmentation_head.0.weight"][:] = 2
    arrays["segmentation_head.0.bias"][:] = 3
    imported = smp.from_state_dict(arrays)
    assert (imported.model.aspp_separable, imported.model.aspp_channels, imported.model.decoder_channels) == (
        (False, 32, 32)
    )
    assert imported.label_set.class_names == ("background", "foreground")
    np.testing.assert_array_equal(imported.variables["params"]["classifier"]["bias"], [0, 3])
    np.testing.assert_array_equal(imported.variables["params"]["classifier"]["kernel"][0, 0], [[0, 2]] * 32)
    assert any("(image classification head): classification_head.3.weight" in line for line in imported.report)
    assert imported.report[-1] == "one class became two: the background has the logit 0"


def test_stride_and_rates_come_from_the_config_next_to_the_file(golden, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(zeros(golden, "mobilenet_v2_stride8"), path)
    assert smp.load(path).model.output_stride == 16

    config = {"_model_class": "DeepLabV3Plus", "encoder_output_stride": 8, "decoder_atrous_rates": [6, 12, 18]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    imported = smp.load(path)
    assert imported.label_set == VOC
    assert imported.model.output_stride == imported.model.atrous_rates_stride == 8
    assert imported.model.atrous_rates == (6, 12, 18)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"_model_class": "Unet"}', "config.json describes a Unet; only DeepLabV3Plus and Segformer are supported"),
        ("{", "config.json is damaged: not valid JSON"),
        ("[]", "config.json is damaged: it is not a JSON object"),
        (
            '{"architectures": []}',
            "config.json is not a config of .*KeyError.* move model.safetensors to a folder of its own",
        ),
    ],
)
def test_other_configs_next_to_the_file_are_refused_in_one_line(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        smp.load(tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "drop", "message"),
    [
        ("resnet34", "decoder.block2.0.1.weight", "the file is not a DeepLabV3Plus .*; it has encoder.conv1.weight"),
        ("resnet34", "decoder.block2.1.running_var", "decoder.block2.1.running_var is missing in the file"),
        ("other", None, "the encoder is not supported .*; it has encoder._conv_stem.weight"),
    ],
)
def test_other_networks_are_refused_in_one_line(network, drop, message, golden):
    arrays = zeros(golden, network)
    arrays.pop(drop, None)
    with pytest.raises(UserError, match=message) as caught:
        smp.from_state_dict(arrays)
    assert "\n" not in str(caught.value)
