"""Imported networks of torchvision equal the originals, block by block."""

import numpy as np
import pytest
import safetensors.numpy

from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC
from deeplab_jax.pretrained.importers import torchvision
from tests.pretrained.importers.torch_networks import Golden, assert_equal, compute


@pytest.fixture(scope="module")
def golden():
    return Golden("torchvision")


def test_logits_and_every_block_of_deeplabv3_equal_torchvisions(golden):
    network = torchvision.from_state_dict(golden.state_dict("deeplabv3_resnet50"))
    assert network.model.output_stride == 8
    assert (network.model.auxiliary_channels, network.model.auxiliary_features) == (256, "stage3")
    assert network.label_set == VOC
    wanted = golden.samples("deeplabv3_resnet50")
    computed = compute(network, wanted, "deeplabv3_resnet50", (33, 321))
    assert_equal(computed, wanted)
    np.testing.assert_allclose(computed["logits"], wanted["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "fields"),
    [
        (
            "lraspp_mobilenet_v3_large",
            (97, 161),
            {"head": "lraspp", "aspp_channels": 128, "auxiliary_channels": 0},
        ),
        (
            "deeplabv3_mobilenet_v3_large",
            (33, 641),
            {"head": "deeplab", "auxiliary_channels": 10, "auxiliary_features": "mid_level_features"},
        ),
    ],
)
def test_logits_and_every_block_on_mobilenet_v3_equal_torchvisions(name, size, fields, golden):
    network = torchvision.from_state_dict(golden.state_dict(name))
    assert {field: network.model[field] for field in fields} == fields
    assert network.label_set == VOC
    wanted = golden.samples(name)
    computed = compute(network, wanted, name, size)
    assert_equal(computed, wanted)
    np.testing.assert_allclose(computed["logits"], wanted["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "backbone"),
    [
        ("resnet18", "resnet18_v1"),
        ("mobilenet_v2_1.0", "mobilenet_v2_full"),
        ("mobilenet_v3_small", "mobilenet_v3_small"),
    ],
)
def test_every_block_of_backbones_equals_torchvisions(network, backbone, golden):
    imported = torchvision.from_state_dict(golden.state_dict(network))
    assert imported.model.backbone == backbone
    assert imported.label_set is None
    imported.model.output_stride = 32  # as classification networks run
    wanted = golden.samples(network)
    assert_equal(compute(imported, wanted, network, (65, 97)), wanted)


@pytest.mark.parametrize(
    ("network", "backbone", "width"),
    [
        ("resnet34", "resnet34_v1", 1.0),
        ("resnet50", "resnet50_v1", 1.0),
        ("resnet152", "resnet152_v1", 1.0),
        ("deeplabv3_resnet101", "resnet101_v1", 1.0),
        ("mobilenet_v2_0.35", "mobilenet_v2_full", 0.35),
        ("mobilenet_v2_1.4", "mobilenet_v2_full", 1.4),
        ("mobilenet_v3_large", "mobilenet_v3_large", 1.0),
    ],
)
def test_every_array_of_other_variants_is_accounted_for(network, backbone, width, golden):
    shapes = golden.shapes(network)
    imported = torchvision.from_state_dict({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    assert (imported.model.backbone, imported.model.width_multiplier) == (backbone, width)
    assert "0 missing, 0 unused" in imported.report[0]
    assert sum(int(line.split()[0]) for line in imported.report) == len(shapes)  # imported and skipped


def test_kernels_of_a_file_are_transposed(golden, tmp_path):
    safetensors.numpy.save_file(golden.state_dict("mobilenet_v2_1.0"), tmp_path / "network.safetensors")
    network = torchvision.load(tmp_path / "network.safetensors")
    assert network.model.backbone == "mobilenet_v2_full"
    kernel = golden.state_dict("mobilenet_v2_1.0")["features.0.0.weight"]
    np.testing.assert_array_equal(
        network.variables["params"]["backbone"]["stem_conv"]["kernel"], kernel.transpose(2, 3, 1, 0)
    )


def test_the_number_of_classes_comes_from_the_classifier(golden):
    arrays = {name: np.zeros(shape) for name, shape in golden.shapes("deeplabv3_resnet50").items()}
    for name in ("classifier", "aux_classifier"):
        arrays |= {f"{name}.4.weight": np.zeros((3, 256, 1, 1)), f"{name}.4.bias": np.zeros(3)}
    assert torchvision.from_state_dict(arrays).label_set.class_names == ("class 0", "class 1", "class 2")


def test_the_auxiliary_head_may_be_missing(golden):
    shapes = golden.shapes("deeplabv3_resnet50")
    arrays = {name: np.zeros(shape) for name, shape in shapes.items() if not name.startswith("aux_classifier")}
    assert len(arrays) == len(shapes) - 8
    network = torchvision.from_state_dict(arrays)
    assert network.model.auxiliary_channels == 0
    assert "auxiliary" not in network.variables["params"]


@pytest.mark.parametrize(
    ("network", "drop", "replace", "message"),
    [
        (
            "resnet18",
            "layer1.0.conv1.weight",
            {},
            "the file is not a supported network of torchvision.*; it has conv1.weight",
        ),
        ("resnet18", "layer2.0.bn1.running_var", {}, "layer2.0.bn1.running_var is missing in the file"),
        ("resnet18", None, {"layer5.weight": np.zeros(3)}, "layer5.weight is unused"),
        ("resnet18", None, {"conv1.weight": np.zeros((64, 4, 7, 7))}, "conv1.weight has shape .64, 4, 7, 7., which"),
        ("mobilenet_v2_1.0", None, {"features.2.conv.2.weight": np.zeros((25, 144, 1, 1))}, "of any width: .*25"),
    ],
)
def test_other_networks_are_refused_in_one_line(network, drop, replace, message, golden):
    arrays = {name: np.zeros(shape) for name, shape in golden.shapes(network).items() if name != drop}
    with pytest.raises(UserError, match=message) as caught:
        torchvision.from_state_dict(arrays | replace)
    assert "\n" not in str(caught.value)
