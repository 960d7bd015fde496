"""Steps compiled by the TPU compiler for slices: their collectives, and what fits into memory."""

import functools
import importlib.util
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from deeplab_jax.analysis import aot_compile, collectives
from deeplab_jax.analysis.tpu_specs import CHIPS, GIB
from deeplab_jax.config import base_config
from deeplab_jax.errors import UserError
from deeplab_jax.models import abstract_variables, build_model
from deeplab_jax.parallel import sharding

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: the extra `tpu`"),
]

CLASSES = 4
HEIGHT, WIDTH = 256, 128  # sixteen rows at stride 16: four for each of four chips


def tiny_network_config(mesh: dict[str, int], **model) -> ConfigDict:
    config = base_config()
    config.model.backbone = "resnet10_v1_slim"
    config.model.atrous_rates = (1, 2)
    config.model.aspp_channels = config.model.decoder_channels = 64
    config.model.low_level_channels = 16
    config.model.update(model)
    config.data.name = "synthetic"
    config.data.batch_size = 16
    config.data.image_size = config.eval.image_size = (HEIGHT, WIDTH)
    config.train.compute_dtype = "bfloat16"
    config.train.duration = "10 steps"
    config.optimizer.learning_rate = 0.1
    config.mesh.update(mesh)
    config.mesh.fsdp_min_size = 4096
    return config


@functools.cache
def exchanged(*mesh: tuple[str, int], freeze: bool = False) -> list[collectives.Collective]:
    """The collectives of the train step on eight chips."""
    config = tiny_network_config(dict(mesh), freeze_norm_statistics=freeze)
    compiled = aot_compile.lower_step(config, aot_compile.topology_devices("v5e:2x4"), num_classes=CLASSES).compile()
    return collectives.find_collectives(compiled.as_text())


def kernels() -> dict[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the network's kernels, and of the part that each of eight chips keeps."""
    config = tiny_network_config({"data": 1, "fsdp": 8})
    model = build_model(config.model, CLASSES)
    mesh = jax.sharding.AbstractMesh((1, 8, 1), ("data", "fsdp", "spatial"))
    params = abstract_variables(model)["params"]
    places = sharding.state_shardings(params, mesh, fsdp_min_size=config.mesh.fsdp_min_size)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(places), strict=True)
    return {leaf.shape: place.shard_shape(leaf.shape) for leaf, place in pairs if len(leaf.shape) == 4}


# The ASPP projection's kernel is used, and its gradient summed, one branch at a time.
PROJECTION, BRANCH = (1, 1, 256, 64), (1, 1, 64, 64)


def gradients() -> set[tuple[int, ...]]:
    """Shapes of the summed gradients."""
    return set(kernels()) - {PROJECTION} | {BRANCH}


def shapes(exchanges, *kinds: str) -> set[tuple[int, ...]]:
    """Shapes of the exchanged arrays with two or more axes."""
    return {shape for item in exchanges if item.kind in kinds for _, shape in item.arrays if len(shape) > 1}


def test_data_parallelism_has_only_all_reduces_and_combines_them():
    exchanges = exchanged(("data", 8))
    assert {item.kind for item in exchanges} == {"all-reduce"}
    assert {item.devices for item in exchanges} == {8}
    assert shapes(exchanges, "all-reduce") == gradients()
    # One exchange sums all bfloat16 gradients.
    (summed,) = (item for item in exchanges if ("bf16", (3, 3, 192, 192)) in item.arrays)
    assert {dtype for dtype, _ in summed.arrays} == {"bf16"}
    assert summed.num_bytes > 0.9 * sum(item.num_bytes for item in exchanges)
    # A BatchNorm's mean and mean of squares travel together.
    forward = [item for item in exchanges if "norm" in item.op_name and "transpose" not in item.op_name]
    assert forward
    assert all(len(item.arrays) % 2 == 0 for item in forward)


def test_without_batch_statistics_few_all_reduces_remain():
    assert len(exchanged(("data", 8), freeze=True)) < 0.2 * len(exchanged(("data", 8)))


def test_fsdp_moves_parameters_and_gradients_and_no_activations():
    exchanges = exchanged(("data", 1), ("fsdp", 8))
    whole = kernels()
    split = {shape for shape, own in whole.items() if own != shape}
    assert {item.kind for item in exchanges} <= {"all-gather", "reduce-scatter", "all-reduce", "collective-permute"}
    assert shapes(exchanges, "all-gather") == split
    assert shapes(exchanges, "reduce-scatter", "all-reduce") <= gradients()
    # Some gradients are reduced and scattered by passing shares around a ring.
    rings = shapes(exchanges, "collective-permute")
    assert rings
    assert rings <= set(whole.values())


def test_spatial_parallelism_exchanges_only_rows():
    exchanges = exchanged(("data", 2), ("spatial", 4))
    assert {item.kind for item in exchanges} == {"all-reduce", "collective-permute"}
    halos = shapes(exchanges, "collective-permute")
    assert halos
    for batch, rows, *_ in halos:
        assert batch == 8
        assert rows <= 2  # of the 64 rows of images that a chip has, or the 4 rows of features at stride 16
    # Sums have no rows: gradients, and the mean of an image's features.
    assert shapes(exchanges, "all-reduce") <= gradients() | {(8, 192), (8, 1, 1, 64)}


def test_slices_exchange_only_what_each_chip_has_reduced():
    config = tiny_network_config({"data": 2, "fsdp": 4})
    devices = aot_compile.topology_devices("v5e:2x2", slices=2)
    assert len(devices) == 8
    found = aot_compile.compile_program(config, devices, num_classes=CLASSES)
    assert found.slices == 2
    assert set(found.between_slices) == {"all-reduce"}
    # Whole gradients would be the bfloat16 bytes of all kernels; each of four chips sends a quarter of most.
    whole = sum(2 * np.prod(shape) for shape in kernels())
    assert 0 < found.network_bytes < 0.75 * whole


@pytest.mark.parametrize(("topology", "chips"), [("v4:2x2x1", 4), ("v5e:4x4", 16), ("v5p:2x2x1", 4), ("v6e:2x2", 4)])
def test_a_chip_is_one_device_with_the_memory_of_the_table(topology, chips):
    devices = aot_compile.topology_devices(topology)
    assert len(devices) == chips
    place = jax.sharding.SingleDeviceSharding(devices[0])
    large = jax.ShapeDtypeStruct((2**18, 2**18), np.float32)
    with pytest.raises(jax.errors.JaxRuntimeError) as rejected:
        jax.jit(lambda x: x @ x @ x, in_shardings=place, out_shardings=place).lower(large).compile()
    assert aot_compile.parse_needed_bytes(str(rejected.value)) >= 512 * GIB
    usable = CHIPS[topology.partition(":")[0]].usable_bytes / GIB
    assert f"available HBM ({usable:.2f}G)" in str(rejected.value)


def test_an_unknown_shape_is_one_line():
    with pytest.raises(UserError, match=r"topology 'v5e:3x3' does not exist .*; choose from 2x2, 2x4"):
        aot_compile.topology_devices("v5e:3x3")


def test_the_command_in_a_process_of_its_own(tiny_arguments, tmp_path):
    """On a machine without an accelerator."""
    path = tmp_path / "aot.json"
    command = [sys.executable, "-m", "deeplab_jax", "aot", "--topology", "v5e:2x2", "--batch-per-chip", "2"]
    arguments = ["--json", str(path), *tiny_arguments, "--config.mesh.data=-1"]
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "GLIBC_TUNABLES")}
    done = subprocess.run([*command, *arguments], env=kept, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    values = json.loads(path.read_text())
    assert values["fits"]
    assert values["batch_size"] == 8
    assert set(values["collectives"]) == {"all-reduce"}
    assert "all-reduce" in done.stdout
