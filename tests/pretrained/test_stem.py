"""Pretrained networks on images of another number of channels, by the rule of segmentation_models.pytorch."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from deeplab_jax import pretrained
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained import PretrainedNetwork
from deeplab_jax.pretrained.network import model_config, variable_shapes
from deeplab_jax.pretrained.stem import with_channels

STEM = "params/backbone/stem_conv1/kernel"


@pytest.fixture(scope="module")
def network():
    model = model_config(backbone="resnet10_v1_slim", atrous_rates=(1, 2))
    model.aspp_channels = model.decoder_channels = model.low_level_channels = 8
    rng = np.random.default_rng(0)
    shapes = variable_shapes(model, 2)
    values = {
        path: (0.5 + rng.random(shape) - 0.5 * (len(shape) > 1)).astype(np.float32) for path, shape in shapes.items()
    }
    return PretrainedNetwork(model, traverse_util.unflatten_dict(values, sep="/"), LabelSet.from_names(("a", "b")))


def flat(network):
    return traverse_util.flatten_dict(network.variables, sep="/")


def reference(weight, new_in_channels):
    """The rule of smp 0.6.0 for a PyTorch weight (out, in, height, width), in its order of operations."""
    if new_in_channels == 1:
        return weight.sum(1, keepdims=True)
    adapted = np.stack([weight[:, i % 3] for i in range(new_in_channels)], axis=1)
    return adapted * np.float32(3 / new_in_channels)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_only_the_first_kernel_changes_and_by_the_rule_of_smp(network, channels):
    before, after = flat(network), flat(with_channels(network, channels))
    assert after.keys() == before.keys()
    for path in before.keys() - {STEM}:
        assert after[path] is before[path]
    expected = reference(before[STEM].transpose(3, 2, 0, 1), channels).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(after[STEM], expected, rtol=1e-6)  # three float32 may be added in another order


def test_the_normalization_follows_the_channels(network):
    model = with_channels(network, 4).model
    assert model.in_channels == 4
    assert model.input_mean == (123.675, 116.28, 103.53, 123.675)
    assert with_channels(network, 1).model.input_std == (pytest.approx((58.395 + 57.12 + 57.375) / 3),)
    assert with_channels(network, 3) is network


def test_the_gray_kernel_gives_what_the_rgb_kernel_gave_for_the_gray_image(network):
    """Exactly so if the three channels are normalized alike; ImageNet's constants differ a little by channel."""
    gray = np.random.default_rng(1).normal(size=(1, 16, 16, 1)).astype(np.float32)
    outputs = [
        jax.lax.conv_general_dilated(
            np.repeat(gray, kernel.shape[2], axis=-1),
            kernel,
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for kernel in (flat(network)[STEM], flat(with_channels(network, 1))[STEM])
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-4)  # 27 products of float32


def test_from_pretrained_adapts_a_saved_network(network, tmp_path):
    pretrained.bundle.save(network, tmp_path / "saved")
    model, variables = pretrained.from_pretrained(tmp_path / "saved", in_channels=5)
    assert model.in_channels == len(model.input_mean) == 5
    kernel = variables["params"]["backbone"]["stem_conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, flat(with_channels(network, 5))[STEM])


def test_a_kernel_of_another_shape_is_refused(network):
    values = flat(network) | {STEM: np.zeros((3, 3, 6, 24), np.float32)}
    wrong = PretrainedNetwork(network.model, traverse_util.unflatten_dict(values, sep="/"), network.label_set)
    with pytest.raises(UserError, match="stem_conv1/kernel has shape .* cannot be adapted to 4 channels"):
        with_channels(wrong, 4)
