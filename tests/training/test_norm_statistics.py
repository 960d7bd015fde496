"""Precise BatchNorm: the statistics are those of all batches together, for the trained network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.config import load_config, validate
from deeplab_jax.errors import UserError
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.training.norm_statistics import make_moments_function, recompute_statistics
from tests.support.toy_network import ToyNetwork


@pytest.mark.parametrize("parts", [1, 2])
def test_statistics_are_those_of_all_images_together(float64, parts):
    model = ToyNetwork(4, dtype=jnp.float64)
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3)).astype(np.uint8)
    images[1] //= 4  # batches differ
    variables = model.init(jax.random.key(0), images[0], train=False)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 5, variables["batch_stats"])  # without an effect

    _, intermediates = model.apply(
        variables, images.reshape(-1, 8, 8, 3), train=True, mutable=["intermediates", "batch_stats"],
        capture_intermediates=lambda module, _: module.name == "backbone",
    )  # fmt: skip
    (features,) = intermediates["intermediates"]["backbone"]["__call__"]
    moments = make_moments_function(model, num_parts=parts)
    stats = recompute_statistics(moments, variables, jnp.asarray(images), jax.random.key(1))["norm"]
    # The only BatchNorm sees features that no statistics change, so those of all images are known. Float64.
    np.testing.assert_allclose(stats["mean"], np.mean(features, axis=(0, 1, 2)), rtol=1e-10)
    np.testing.assert_allclose(stats["var"], np.var(features, axis=(0, 1, 2)), rtol=1e-10)


def test_a_mesh_gives_the_same_statistics():
    config = load_config("quickstart").mesh
    config.update(data=2, fsdp=2, spatial=1)
    mesh = mesh_lib.make_mesh(config, jax.devices()[:4])
    model = ToyNetwork(4)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    variables = model.init(jax.random.key(0), images, train=False)
    split = sharding.to_global({"image": images}, mesh)["image"]
    assert len(split.sharding.device_set) == 4
    results = [
        recompute_statistics(make_moments_function(model, mesh=each), variables, [batch], jax.random.key(1))
        for each, batch in ((None, jnp.asarray(images)), (mesh, split))
    ]
    jax.tree.map(lambda one, many: np.testing.assert_allclose(one, many, rtol=1e-5), *results)  # float32 sums


def test_frozen_statistics_cannot_be_recomputed():
    config = load_config("quickstart")
    config.train.precise_norm_batches = 2
    validate(config)
    config.model.freeze_norm_statistics = True
    with pytest.raises(UserError, match="^train.precise_norm_batches computes the statistics that"):
        validate(config)
