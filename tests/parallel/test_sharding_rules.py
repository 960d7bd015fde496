"""The rules that choose along which axis an array is split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from deeplab_jax.config import base_config
from deeplab_jax.models import BACKBONES, abstract_variables, build_for_mesh
from deeplab_jax.parallel import sharding

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "shape", "spec"),
    [
        ("params/backbone/conv/kernel", (3, 3, 16, 24), (None, None, None, "fsdp")),
        (
            "params/classifier/kernel",
            (1, 1, 256, 21),
            (None, None, "fsdp"),
        ),  # 21 classes do not divide: their inputs do
        ("params/backbone/conv/kernel", (3, 3, 5, 7), ()),  # nothing divides
        ("params/norm/scale", (64,), ("fsdp",)),
        ("batch_stats/norm/var", (64,), ("fsdp",)),
        ("params/norm/bias", (56,), ()),  # fewer than 64 elements
        ("opt_state/0/trace/conv/kernel", (1, 1, 8, 8), (None, None, None, "fsdp")),
        ("ema_variables/params/backbone/conv/kernel", (3, 3, 16, 24), (None, None, None, "fsdp")),
        ("rng", (128,), ()),
        ("step", (), ()),
    ],
)
def test_rules_choose_the_axis(name, shape, spec):
    assert sharding.partition_spec(name, shape, 8, fsdp_min_size=64) == PartitionSpec(*spec)
    assert sharding.partition_spec(name, shape, 1, fsdp_min_size=64) == PartitionSpec()


def test_an_array_that_no_rule_matches_is_an_error():
    mesh = jax.sharding.AbstractMesh((1, 8, 1), ("data", "fsdp", "spatial"))
    with pytest.raises(ValueError, match=r"no sharding rule matches params/conv/my_kernel of shape \(8, 8\)"):
        sharding.state_shardings({"params": {"conv": {"my_kernel": jnp.zeros((8, 8))}}}, mesh, fsdp_min_size=1)


# The deepest networks have no array that their smaller siblings lack.
DEEP = ("mit_b3", "mit_b4", "mit_b5", "xception65", "xception71", "resnet152_v1", "resnet152_v2")


@pytest.mark.parametrize("backbone", [slow(name) if name in DEEP else name for name in BACKBONES])
def test_rules_match_every_array_of_every_network(backbone):
    config = base_config()
    config.update_from_flattened_dict({"model.backbone": backbone, "optimizer.learning_rate": 0.1})
    config.model.output_stride = (*BACKBONES[backbone].output_strides, 16)[0]
    mesh = jax.sharding.AbstractMesh((2, 4, 1), ("data", "fsdp", "spatial"))
    variables = abstract_variables(build_for_mesh(config, 21, mesh))
    places = sharding.state_shardings(variables, mesh, fsdp_min_size=config.mesh.fsdp_min_size)
    sizes = [
        (leaf.size, np.prod(place.shard_shape(leaf.shape)))
        for leaf, place in zip(jax.tree.leaves(variables), jax.tree.leaves(places), strict=True)
    ]
    # A quarter, and what is small: .31 of the smallest network.
    assert sum(own for _, own in sizes) < 0.32 * sum(size for size, _ in sizes)
