"""The halo check: it refuses exactly the convolutions for which XLA gathers all rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from deeplab_jax import ops
from deeplab_jax.analysis import collectives
from deeplab_jax.config import base_config
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.models import build_for_mesh
from deeplab_jax.models.layers import Conv
from deeplab_jax.ops.operations import SWITCH
from deeplab_jax.parallel import mesh as mesh_lib


def abstract_mesh(spatial: int) -> AbstractMesh:
    return AbstractMesh((1, 1, spatial), ("data", "fsdp", "spatial"))


def sizes(config):
    return protocol_for(config).input_sizes


def network_config(height: int, rates: tuple[int, ...]):
    config = base_config()
    config.model.backbone, config.model.atrous_rates = "resnet10_v1_slim", rates
    config.data.image_size = config.eval.image_size = (height, 64)
    return config


def test_remat_is_for_accelerators(monkeypatch):
    """The operations of the CPU backend recompute activations anyway."""
    monkeypatch.delenv(SWITCH)
    config = network_config(64, (6,))
    config.train.remat = "activations"
    assert build_for_mesh(config, 5, mesh_lib.make_mesh(config.mesh)).remat == "none"
    assert build_for_mesh(config, 5, abstract_mesh(1)).remat == "activations"


@pytest.mark.parametrize(
    ("spatial", "rate", "fits"),
    [(4, 18, True), (4, 23, True), (4, 24, False), (4, 36, False), (2, 32, True), (2, 33, False)],
)
def test_a_rate_may_reach_several_devices_but_not_all_rows(spatial, rate, fits):
    """64 rows at stride 16. With sixteen rows per device, rate 23 requests 46 more, rate 24 all others."""
    config = network_config(1024, (6, rate))
    if fits:
        assert build_for_mesh(config, 5, abstract_mesh(spatial), input_sizes=sizes(config)).ops is ops.SPATIAL
    else:
        message = (
            rf"^aspp/branch_atrous2/conv: rate {rate} on 64 rows needs the whole image, but mesh.spatial={spatial} "
            rf"leaves {64 // spatial} rows per device"
        )
        with pytest.raises(UserError, match=message):
            build_for_mesh(config, 5, abstract_mesh(spatial), input_sizes=sizes(config))


def test_the_evaluation_size_is_checked_too():
    config = network_config(1024, (6, 12, 18))
    config.eval.image_size = (512, 64)
    with pytest.raises(UserError, match="a larger height in eval.image_size"):
        build_for_mesh(config, 5, abstract_mesh(4), input_sizes=sizes(config))
    config.eval.protocol = "guide"  # which scores at data.image_size
    build_for_mesh(config, 5, abstract_mesh(4), input_sizes=sizes(config))


def test_a_mesh_that_does_not_split_rows_is_not_checked():
    config = network_config(32, (36,))
    assert build_for_mesh(config, 5, abstract_mesh(1)).ops is ops.XLA


@pytest.mark.parametrize(("spatial", "rate", "fits"), [(4, 5, True), (4, 6, False), (2, 4, True), (2, 5, False)])
def test_xla_gathers_exactly_what_is_refused(spatial, rate, fits):
    """Four rows per device, one convolution: the bound is XLA's own."""
    mesh = jax.make_mesh((8 // spatial, spatial), ("data", "spatial"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec("data", "spatial"))
    x = jax.ShapeDtypeStruct((8, 4 * spatial, 6, 3), np.float32, sharding=rows)
    kernel = jnp.ones((3, 3, 3, 3), jnp.float32)
    function = jax.jit(lambda x: Conv(3, 3, rate=rate).apply({"params": {"kernel": kernel}}, x), out_shardings=rows)
    assert ("all-gather" not in collectives.count_collectives(function.lower(x).compile().as_text())) == fits
