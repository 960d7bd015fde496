"""Imported MobileNetV3 networks of research/deeplab equal slim's layers, unit by unit.

`goldens/make_tf_mobilenet_v3.py` computed the expected values.
"""

import pathlib

import jax
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones.inverted_residual import InvertedResidual
from deeplab_jax.models.backbones.mobilenet_v3 import VARIANTS
from deeplab_jax.pretrained.importers import tf_deeplab
from tests.goldens import formula
from tests.pretrained.importers.units import make_outputs

GOLDEN = pathlib.Path(__file__).parents[2] / "goldens" / "tf_mobilenet_v3.npz"


@pytest.fixture(scope="module")
def goldens():
    found = {"large": {}, "small": {}}
    for key, value in np.load(GOLDEN).items():
        network, _, name = key.partition(":")
        found[network][name] = value
    return found


def variables_of(golden):
    """Variables of a checkpoint, with the names and shapes of the original."""
    variables = {}
    for name, text in zip(golden["names"].tolist(), golden["shapes"].tolist(), strict=True):
        # The last axis of a depthwise kernel is the multiplier, so the fan-in of the axis before it is a window.
        axis = 2 if name.endswith("/depthwise_weights") else -1
        shape = tuple(map(int, text.split()))
        variables[name] = formula.weight(name, shape, is_norm="/BatchNorm/" in name, output_axis=axis)
    return variables


def run(network, images):
    stages, _ = VARIANTS[network.model.backbone.removeprefix("mobilenet_v3_")]
    names = [f"stage{number}_block{unit + 1}" for number, stage in enumerate(stages, 1) for unit in range(stage.units)]
    return make_outputs(network, names, InvertedResidual)(images)


@pytest.mark.parametrize(
    ("name", "size", "parameters", "changes"),
    [
        ("small", (353, 545), 468_830, {"image_pooling_window": (193, 193)}),
        pytest.param(
            "large",
            (97, 193),
            1_507_198,
            {"image_pooling_window": (65, 97), "output_stride": 16},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_logits_and_every_unit_equal_slims(goldens, name, size, parameters, changes):
    golden = goldens[name]
    network = tf_deeplab.from_variables(variables_of(golden))
    assert sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"])) == parameters
    assert network.model.backbone == f"mobilenet_v3_{name}_seg"
    assert (network.model.image_pooling_window, network.model.output_stride) == ((769, 769), 32)
    network.model.update(changes)
    values = run(network, formula.images("picture", (1, *size, 3)))
    compared = [key for key in golden if f"{key}/steps" in golden and key != "pooled"]
    assert len(compared) >= 16
    for key in compared:
        ours = np.asarray(values[key])[tuple(slice(None, None, step) for step in golden[f"{key}/steps"])]
        # Float32 sums in another order.
        np.testing.assert_allclose(ours, golden[key], rtol=0, atol=5e-5, err_msg=key)


def test_a_trunk_alone_becomes_a_backbone(goldens):
    foreign = {name: value for name, value in variables_of(goldens["small"]).items() if name.startswith("MobilenetV3/")}
    foreign["MobilenetV3/Logits/Conv2d_1c_1x1/biases"] = np.zeros(1001, np.float32)
    network = tf_deeplab.from_variables(foreign | {"global_step": np.array(7)})
    assert network.label_set is None
    assert set(network.variables["params"]) == {"backbone"}
    assert any("(ImageNet classifier)" in line for line in network.report)


def test_a_mobilenet_v3_of_another_width_is_refused(goldens):
    foreign = variables_of(goldens["small"])
    foreign["MobilenetV3/Conv_1/weights"] = np.zeros((1, 1, 48, 200), np.float32)
    with pytest.raises(UserError, match="Conv_1 has 200 features; expected a MobileNetV3 with one of 960, 576, 480"):
        tf_deeplab.from_variables(foreign)
