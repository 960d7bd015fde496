"""Folding of BatchNorm: the same function and endpoints for all kinds of networks, and which kernels take a factor."""

import flax.errors
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

from deeplab_jax import ops
from deeplab_jax.config import base_config
from deeplab_jax.models import BACKBONES, BackboneSpec, abstract_variables, build_model, fold_batch_norm
from deeplab_jax.models.backbones.mit import MixTransformer
from deeplab_jax.models.layers import Layers
from tests.models.support import CLASSES, evaluate, random_images, random_variables, small_model_config

#: Every kind of backbone, head, decoder and ASPP in one network at least.
NETWORKS = {
    "resnet10_v1_slim": {"decoder": "kerascv", "aspp_separable": True},
    "resnet50_v1_beta": {"aspp": "dpc", "decoder": "torchvision"},
    "resnet50_v2": {"decoder": "smp", "aspp_separable": True, "separable_norm": False, "auxiliary_channels": 8},
    "mobilenet_v3_small": {"head": "lraspp", "aspp_channels": 16},
    "efficientnet_lite0": {"decoder": "separable", "low_level_strides": (4, 8), "aspp_projection_size": 3},
    "xception71": {"decoder": "paper", "image_pooling_window": (33, 33), "classifier_bias": True},
    "mit": {"head": "segformer", "output_stride": 32, "decoder_channels": 16},
}


@pytest.fixture(autouse=True)
def more_backbones(small_backbones, monkeypatch):
    arguments = {"channels": (8, 8, 8, 8), "blocks": (1, 1, 1, 1), "heads": (1, 2, 2, 2)}
    monkeypatch.setitem(BACKBONES, "small_mit", BackboneSpec(MixTransformer, arguments, output_strides=(32,)))
    monkeypatch.setitem(BACKBONES, "knotted", BackboneSpec(Knotted))


class Knotted(nn.Module):
    """A backbone of a user's own, whose factors mostly cannot be multiplied into kernels."""

    layers: Layers
    output_stride: int
    spread_converted: bool

    @nn.compact
    def __call__(self, x):
        conv, norm = self.layers.conv, self.layers.norm
        x = norm(name="of_images")(x)
        x = norm(name="of_biased")(conv(8, kernel_size=3, stride=4, use_bias=True, name="biased")(x))
        low_level = read_twice = conv(8, name="read_twice")(x)
        x = nn.relu(norm(name="of_read_twice")(read_twice))
        called_twice = conv(8, name="called_twice")
        x = called_twice(nn.relu(norm(name="of_called_twice")(called_twice(x))))
        x = norm(name="of_pooled")(nn.max_pool(conv(8, name="pooled")(x), (2, 2), (2, 2)))
        return {"low_level_features": low_level, "features": x[:, ::2, ::2]}


def small_network(backbone, *, compute_dtype="float64", **options):
    name = backbone if backbone in ("knotted", "tiny") else f"small_{backbone}"
    config = small_model_config(name, atrous_rates=(2, 4), **options)
    if "head" in options:  # these heads do not take the fields of DeepLab's
        config = base_config().model
        config.update({"backbone": name} | options)
    model = build_model(config, CLASSES, compute_dtype=compute_dtype)
    return model, jax.tree.map(lambda leaf: leaf.astype(compute_dtype), random_variables(model))


def norms_with(leaf, variables):
    """Paths of the norms that have a parameter of this name: `factor` if they still multiply, `scale` if unfolded."""
    return {"/".join(path[:-1]) for path in traverse_util.flatten_dict(variables["params"]) if path[-1] == leaf}


def assert_computes_the_same(model, variables, folded):
    """Compares logits and endpoints."""
    images = random_images(2, 33, 49, 3)
    expected, result = jax.jit(lambda *both: [model.apply(each, images, train=False) for each in both])(
        variables, folded
    )
    assert jax.tree.structure(expected) == jax.tree.structure(result)
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, one), other in zip(leaves, jax.tree.leaves(result), strict=True):
        # float64: what is left is the rounding of products in another order.
        tolerance = 1e-9 * np.abs(one).max()
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("backbone", NETWORKS)
def test_folded_networks_compute_the_same(float64, backbone):
    model, variables = small_network(backbone, **NETWORKS[backbone])
    folded = fold_batch_norm(model, variables)
    assert {path.split("/")[-1] for path in norms_with("factor", folded)} == (
        {"preactivation_norm", "final_norm"} if backbone == "resnet50_v2" else set()
    )
    assert {path.split("/")[0] for path in norms_with("scale", folded)} == (
        {"auxiliary"} if backbone == "resnet50_v2" else {"backbone"} if backbone == "mit" else set()  # LayerNorm
    )
    assert_computes_the_same(model, variables, folded)


def test_only_kernels_whose_output_nothing_else_reads_take_a_factor(float64):
    model, variables = small_network("knotted", aspp="none", decoder="none")
    folded = fold_batch_norm(model, variables)
    names = {"of_images", "of_read_twice", "of_called_twice", "of_pooled"}
    assert norms_with("factor", folded) == {f"backbone/{name}" for name in names}
    assert_computes_the_same(model, variables, folded)


def test_folded_variables_are_not_folded_again_and_cannot_be_trained():
    model, variables = small_network("knotted", aspp="none", decoder="none", compute_dtype="float32")
    folded = fold_batch_norm(model, variables)
    jax.tree.map(np.testing.assert_array_equal, fold_batch_norm(model, folded), folded)
    with pytest.raises(flax.errors.ScopeParamNotFoundError):
        model.apply(folded, random_images(1, 33, 33, 3), train=True, mutable=["batch_stats"])


def test_networks_without_batch_norm_stay_as_they_are():
    model, variables = small_network("mit", output_stride=32, aspp="none", decoder="none", compute_dtype="float32")
    assert set(variables) == {"params"}
    jax.tree.map(np.testing.assert_array_equal, fold_batch_norm(model, variables), variables)


def test_the_operations_for_cpus_fold_to_the_same_function():
    """In float32, with the compiled program that prediction runs; 1e-5 of the size of the logits."""
    model, variables = small_network("tiny", compute_dtype="float32")
    model = model.clone(ops=ops.select("cpu"))
    images = random_images(1, 33, 33, 3)
    expected, _ = evaluate(model, variables, images)
    logits, _ = evaluate(model, fold_batch_norm(model, variables), images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", sorted(set(BACKBONES)))
def test_every_norm_after_a_convolution_of_the_registered_backbones_folds(backbone):
    stride = BACKBONES[backbone].output_strides[-1:] or (16,)
    model = build_model(small_model_config(backbone, output_stride=stride[0], atrous_rates=(6, 12)), CLASSES)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract_variables(model))
    left = {path.split("/")[-1] for path in norms_with("factor", fold_batch_norm(model, variables))}
    v2 = {"preactivation_norm"} if backbone.endswith("kerascv") else {"preactivation_norm", "final_norm"}
    assert left == (v2 if "_v2" in backbone and "resnet" in backbone else set())
