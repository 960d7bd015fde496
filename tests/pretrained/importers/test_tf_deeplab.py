"""Imported networks of research/deeplab equal slim's layers, unit by unit.

`goldens/make_tf_deeplab.py` computed the expected values.
"""

import functools
import pathlib

import jax
import numpy as np
import pytest

from deeplab_jax.config import load_config
from deeplab_jax.errors import UserError
from deeplab_jax.labels import ADE20K, CITYSCAPES
from deeplab_jax.models import BACKBONES
from deeplab_jax.models.backbones.inverted_residual import InvertedResidual
from deeplab_jax.models.backbones.resnet_v1 import BottleneckV1
from deeplab_jax.models.backbones.xception import XceptionUnit
from deeplab_jax.pretrained import BACKBONE_FIELDS, import_file
from deeplab_jax.pretrained.importers import tf_deeplab
from tests.goldens import formula
from tests.pretrained.importers.units import make_outputs
from tests.pretrained.readers.tf_checkpoint_writer import write_checkpoint

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"
STAGES = {"mobilenet_v2": (1, 2, 3, 4, 3, 3, 1), "resnet50_v1_beta": (3, 4, 6, 3)}


def weight(name, shape):
    # The last axis of a depthwise kernel is the multiplier, so the fan-in of the axis before it is a window.
    axis = 2 if name.endswith("/depthwise_weights") else -1
    return formula.weight(name, shape, is_norm="/BatchNorm/" in name, output_axis=axis)


@functools.cache
def golden_of(name):
    return dict(np.load(GOLDENS / f"tf_deeplab_{name}.npz"))


@functools.cache
def checkpoint_of(name):
    """Variables of a checkpoint, with the names and shapes of the original."""
    golden = golden_of(name)
    shapes = [tuple(map(int, text.split())) for text in golden["shapes"]]
    return {str(name): weight(str(name), shape) for name, shape in zip(golden["names"], shapes, strict=True)}


def units_of(backbone):
    """The names of the modules of the units, in order."""
    stages = STAGES.get(backbone.removesuffix("_depthwise_taps"))
    if stages is not None:
        return [f"stage{stage}_block{i + 1}" for stage, count in enumerate(stages, 1) for i in range(count)]
    return [name for block in BACKBONES[backbone].arguments["blocks"] for name in block.unit_names()]


def run(network, images):
    units = units_of(network.model.backbone)
    return make_outputs(network, units, InvertedResidual, BottleneckV1, XceptionUnit)(images)


XCEPTION = {"aspp": "parallel", "aspp_separable": True, "decoder": "separable", "backbone_norm_epsilon": 1e-3}


@pytest.mark.parametrize(
    ("name", "size", "fields"),
    [
        ("mobilenet_v2", (64, 64), {"backbone": "mobilenet_v2", "width_multiplier": 0.5, "decoder": "none"}),
        # At this size, taps at rates 6, 12 and 18 all see more than padding.
        ("resnet_v1_50", (321, 321), {"backbone": "resnet50_v1_beta", "aspp_separable": True, "decoder": "separable"}),
        ("dense", (66, 66), {"backbone": "resnet50_v1_beta", "image_pooling": False, "decoder": "paper"}),
        (
            "mobilenet_v2_decoder",
            (65, 97),
            {"backbone": "mobilenet_v2_depthwise_taps", "atrous_rates": (), "decoder": "separable"},
        ),
        ("mobilenet_v2_cell", (369, 353), {"aspp": "dpc", "decoder": "none"}),
        ("xception_41", (65, 97), XCEPTION | {"backbone": "xception41"}),
        pytest.param(
            "xception_65",
            (66, 98),
            XCEPTION | {"backbone": "xception65", "aspp_separable": False, "decoder": "paper"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "xception_71", (81, 65), XCEPTION | {"backbone": "xception71", "aspp": "dpc", "aspp_separable": False},
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_logits_and_every_unit_equal_slims(name, size, fields):
    golden = golden_of(name)
    network = tf_deeplab.from_variables(checkpoint_of(name))
    assert {field: network.model[field] for field in fields} == fields
    assert network.label_set.num_classes == 5
    network.model.output_stride = 8 if name == "xception_65" else 16
    values = run(network, formula.images("picture", (1, *size, 3)))
    compared = [key for key in golden if f"{key}/steps" in golden]
    assert len(compared) >= len(units_of(network.model.backbone)) + 3
    for key in compared:
        ours = np.asarray(values[key])[tuple(slice(None, None, step) for step in golden[f"{key}/steps"])]
        # float32 sums in another order, relative to the largest values.
        atol = 5e-5 * max(1, np.abs(golden[key]).max())
        np.testing.assert_allclose(ours, golden[key], rtol=0, atol=atol, err_msg=key)


def test_a_checkpoint_file_is_imported_and_skipped_variables_are_reported(tmp_path):
    foreign = checkpoint_of("mobilenet_v2")
    more = {
        "global_step": np.array(30000),
        "aspp0/weights/Momentum": np.zeros((1, 1, 160, 256), np.float32),
        "aspp0/weights/ExponentialMovingAverage": np.zeros((1, 1, 160, 256), np.float32),
    }
    write_checkpoint(tmp_path / "model.ckpt", foreign | more, blocks=3)
    network = tf_deeplab.load(tmp_path / "model.ckpt")
    expected = tf_deeplab.from_variables(foreign).variables
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, network.variables, expected)))
    assert network.report[0].startswith(f"{len(foreign)} arrays imported")
    for line in (
        "1 skipped (training step): global_step",
        "1 skipped (optimizer state): aspp0/weights/Momentum",
        "1 skipped (moving averages; the variables themselves are imported): aspp0/weights/ExponentialMovingAverage",
    ):
        assert line in network.report


def test_a_network_with_voc_classes_uses_the_evaluation_settings_of_its_authors():
    foreign = dict(checkpoint_of("mobilenet_v2"))
    foreign["logits/semantic/weights"] = np.zeros((1, 1, 256, 21), np.float32)
    foreign["logits/semantic/biases"] = np.zeros(21, np.float32)
    network = tf_deeplab.from_variables(foreign)
    assert (network.protocol, network.image_size) == ("whole", (513, 513))
    assert network.label_set.class_names[15] == "person"
    assert network.model.input_mean == network.model.input_std == (127.5,) * 3


@pytest.mark.parametrize(
    ("logits", "labels", "size"), [(151, ADE20K, None), (19, CITYSCAPES, (1025, 2049)), (5, None, None)]
)
def test_classes_are_named_by_their_number(logits, labels, size):
    foreign = dict(checkpoint_of("mobilenet_v2"))
    kernel, bias = weight("logits/semantic/weights", (1, 1, 256, logits)), weight("logits/semantic/biases", (logits,))
    network = tf_deeplab.from_variables(foreign | {"logits/semantic/weights": kernel, "logits/semantic/biases": bias})
    assert network.label_set.class_names[0] == (labels.class_names[0] if labels else "class 0")
    assert network.label_set == (labels or network.label_set)
    assert network.image_size == size
    # Class 0 of ADE20K was ignored in training.
    dropped = logits - network.label_set.num_classes
    assert dropped == (1 if labels is ADE20K else 0)
    assert ("class 0 of 151, which ADE20K's training ignored, was dropped" in network.report) == bool(dropped)
    classifier = network.variables["params"]["classifier"]
    np.testing.assert_array_equal(classifier["kernel"], kernel[..., dropped:])
    np.testing.assert_array_equal(classifier["bias"], bias[dropped:])


def backbone_of(foreign, scope):
    return {name: value for name, value in foreign.items() if name.startswith(scope)}


def test_an_imagenet_network_becomes_a_backbone():
    foreign = backbone_of(checkpoint_of("resnet_v1_50"), "resnet_v1_50/")
    foreign["resnet_v1_50/logits/weights"] = np.zeros((1, 1, 2048, 1001), np.float32)
    network = tf_deeplab.from_variables(foreign)
    assert network.label_set is None
    assert set(network.variables["params"]) == {"backbone"}
    assert "1 skipped (ImageNet classifier): resnet_v1_50/logits/weights" in network.report
    config = load_config("deeplabv3plus_resnet50_voc").model
    assert {field: network.model[field] for field in BACKBONE_FIELDS} == {
        field: config[field] for field in BACKBONE_FIELDS
    }


def test_an_imagenet_xception_becomes_a_backbone():
    """With the slots of RMSProp, and the classifier of 1,001 classes."""
    trunk = backbone_of(checkpoint_of("xception_41"), "xception_41/")
    more = {
        "xception_41/logits/weights": np.zeros((1, 1, 2048, 1001), np.float32),
        "xception_41/logits/biases": np.zeros(1001, np.float32),
        "xception_41/entry_flow/conv1_1/weights/RMSProp_1": np.zeros((3, 3, 3, 32), np.float32),
        "global_step": np.array(500_000),
    }
    network = tf_deeplab.from_variables(trunk | more)
    assert network.label_set is None
    assert set(network.variables["params"]) == {"backbone"}
    assert network.report[0].startswith(f"{len(trunk)} arrays imported")
    assert "2 skipped (ImageNet classifier): xception_41/logits/weights, xception_41/logits/biases" in network.report
    config = load_config("deeplabv3plus_xception65_voc", backbone="xception41").model
    assert {field: network.model[field] for field in BACKBONE_FIELDS} == {
        field: config[field] for field in BACKBONE_FIELDS
    }


def classification_mobilenet(foreign):
    """The variables of a classification MobileNetV2 of width 0.5, whose features slim rounds to multiples of 8."""
    renamed = {}
    for name, value in backbone_of(foreign, "MobilenetV2/").items():
        if name.split("/")[1] in ("expanded_conv_1", "expanded_conv_2", "expanded_conv_3"):
            # The second stage has 16 features instead of 12.
            shape = [{12: 16, 72: 96}.get(extent, extent) for extent in value.shape]
            value = np.zeros(shape, np.float32)
        renamed[name] = value
    renamed["MobilenetV2/Conv_1/weights"] = np.zeros((1, 1, 160, 1280), np.float32)
    for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
        renamed[f"MobilenetV2/Conv_1/BatchNorm/{leaf}"] = np.zeros(1280, np.float32)
    renamed["MobilenetV2/Logits/Conv2d_1c_1x1/weights"] = np.zeros((1, 1, 1280, 1001), np.float32)
    return renamed


def test_a_classification_mobilenet_of_another_width_keeps_its_last_convolution():
    network = tf_deeplab.from_variables(classification_mobilenet(checkpoint_of("mobilenet_v2")))
    assert network.model.backbone == "mobilenet_v2_full"
    assert network.variables["params"]["backbone"]["final_conv"]["kernel"].shape == (1, 1, 160, 1280)


MOBILE, RESNET = "mobilenet_v2", "dense"


@pytest.mark.parametrize(
    ("name", "removed", "added", "message"),
    [
        (MOBILE, "MobilenetV2", {}, "does not contain MobilenetV2, .* start with aspp0, concat_projection"),
        (MOBILE, "MobilenetV2/expanded_conv_16/project", {}, "no kernel MobilenetV2/expanded_conv_16/project/weights"),
        (
            MOBILE,
            "MobilenetV2/expanded_conv_7/expand/BatchNorm/beta",
            {},
            "expand/BatchNorm/beta is missing in the file",
        ),
        (MOBILE, "aspp0", {}, "no kernel aspp0/weights"),
        (MOBILE, "concat_projection", {}, "no kernel concat_projection/weights"),
        (MOBILE, None, {"logits/semantic_1/biases": (5,)}, "logits/semantic_1/biases is unused"),
        (MOBILE, None, {"aspp1/weights": (3, 3, 1, 1)}, "the atrous branches 1; only three are supported"),
        (
            MOBILE,
            None,
            {"aspp0/weights": (1, 1, 160, 9)},
            "aspp0 and concat_projection have different numbers of features",
        ),
        (RESNET, None, {"resnet_v1_50/conv1/weights": (7, 7, 3, 64)}, "starts with a 7x7 convolution"),
        (
            RESNET,
            "resnet_v1_50/block3/unit_6",
            {},
            "block3/unit_6/.*moving_mean is missing in the file .for .* and 10 more",
        ),
        (RESNET, "decoder/decoder_conv0/decoder_conv0_2", {}, "no kernel decoder/decoder_conv0/decoder_conv0_2"),
    ],
)
def test_missing_and_unknown_variables_are_named(name, removed, added, message):
    foreign = {
        key: value for key, value in checkpoint_of(name).items() if removed is None or not key.startswith(removed)
    }
    foreign |= {key: np.zeros(shape, np.float32) for key, shape in added.items()}
    with pytest.raises(UserError, match=message) as caught:
        tf_deeplab.from_variables(foreign)
    assert "\n" not in str(caught.value)


def test_checkpoints_of_other_networks_are_refused_with_their_path(tmp_path):
    write_checkpoint(tmp_path / "model.ckpt", {"vgg_16/conv1/weights": np.zeros(3)})
    with pytest.raises(UserError, match="model.ckpt: the checkpoint does not contain .* start with vgg_16$"):
        import_file(tmp_path / "model.ckpt", "tf-deeplab")
