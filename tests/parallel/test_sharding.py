"""Meshes: how arrays are split, that a step computes the same on all meshes, and which collectives it uses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from deeplab_jax import losses, ops
from deeplab_jax.analysis import collectives
from deeplab_jax.config import base_config
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.evaluator import evaluate
from deeplab_jax.evaluation.step import make_eval_step
from deeplab_jax.models import BACKBONES, PARTS, build_for_mesh
from deeplab_jax.ops.operations import SWITCH
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.training import optimizer
from deeplab_jax.training.loop import train
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import make_train_step
from tests.support import toy_network
from tests.support.toy_network import ToyNetwork

CLASSES = 4
HEIGHT, WIDTH = 128, 16  # eight rows at stride 16: two for each of four devices
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}

ONE = "one device"
MESHES = {
    "data 8": {"data": 8},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "data 4 x fsdp 2": {"data": 4, "fsdp": 2},
    "data 2 x spatial 4": {"data": 2, "spatial": 4},
}
SIZES = MESHES | {ONE: {"data": 1}, "data 4": {"data": 4}}
RESNET = ("resnet10_v1_slim", "kerascv")
SEGFORMER = ("mit_tiny", "segformer")
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def in_float64():
    """In float32 a network of this depth amplifies rounding to percents."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def mit_tiny(monkeypatch):
    """A Mix Transformer of one narrow block per stage."""
    arguments = {"channels": (8, 16, 16, 32), "blocks": (1, 1, 1, 1), "heads": (1, 2, 2, 4)}
    monkeypatch.setitem(BACKBONES, "mit_tiny", dataclasses.replace(BACKBONES["mit_b0"], arguments=arguments))


def tiny_network_config(backbone: str, decoder: str, mesh: dict[str, int]) -> ConfigDict:
    config = base_config()
    config.model.backbone, config.model.decoder_channels = backbone, 8
    if decoder == "segformer":
        config.model.head, config.model.output_stride, config.model.drop_path = "segformer", 32, 0.2
    else:
        config.model.decoder = decoder
        config.model.width_multiplier = 0.25 if backbone == "mobilenet_v2" else 1.0
        config.model.atrous_rates, config.model.aspp_separable = (1, 2), True  # depthwise convolutions in all of them
        config.model.aspp_channels = config.model.low_level_channels = 8
    config.data.image_size = config.eval.image_size = (HEIGHT, _width(decoder))
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 1e-3
    config.train.compute_dtype = "float64"
    config.mesh.update(mesh)
    config.mesh.fsdp_min_size = 64  # nearly everything is split, vectors too
    return config


def _width(decoder: str) -> int:
    return 32 if decoder == "segformer" else WIDTH  # its attention needs 32


def random_batch(size: int = 8, width: int = WIDTH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, (size, HEIGHT, width), dtype=np.uint8)
    label[0] = 255  # what is labeled differs from device to device
    label[:, :3] = 255
    return {"image": rng.integers(0, 256, (size, HEIGHT, width, 3), dtype=np.uint8), "label": label}


def mesh_of(name: str) -> jax.sharding.Mesh:
    config = base_config().mesh
    config.update(SIZES[name])
    return mesh_lib.make_mesh(config)


@functools.cache
def first_state(backbone: str, decoder: str) -> TrainState:
    """On the host, in float64."""
    config = tiny_network_config(backbone, decoder, SIZES[ONE])
    mesh = mesh_lib.make_mesh(config.mesh)
    rule, schedule = optimizer.make(config.optimizer, 10, parts=PARTS)
    model = build_for_mesh(config, CLASSES, mesh)
    state = jax.device_get(TrainState.create_on(sharding.replicated(mesh), model, rule, seed=0))
    wide = {np.dtype(np.float32): np.float64}
    return jax.tree.map(lambda leaf: leaf.astype(wide.get(leaf.dtype, leaf.dtype)), state)


@functools.cache
def step_on_mesh(backbone: str, decoder: str, mesh_name: str, accumulate: int = 1, *, operations: str = "xla"):
    """The compiled step, the state and report of one step on the host, and the state on the devices.

    `operations` is the value of the switch: "xla", or "" for the CPU backend.
    """
    config = tiny_network_config(backbone, decoder, SIZES[mesh_name])
    mesh = mesh_lib.make_mesh(config.mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, operations)
        model = build_for_mesh(config, CLASSES, mesh)
    rule, schedule = optimizer.make(config.optimizer, 10, parts=PARTS)
    shapes = TrainState.shapes(model, rule)
    shardings = sharding.state_shardings(shapes, mesh, fsdp_min_size=config.mesh.fsdp_min_size)
    step = make_train_step(
        model,
        rule,
        losses.make_loss(config.loss, num_classes=CLASSES),
        learning_rate=schedule,
        accumulate_steps=accumulate,
        shardings=shardings,
    )
    step = jax.jit(step, out_shardings=(shardings, sharding.replicated(mesh)), donate_argnums=0)
    state = jax.device_put(first_state(backbone, decoder), shardings)
    batch = sharding.to_global(random_batch(width=_width(decoder)), mesh)
    compiled = step.lower(state, batch).compile()
    after, report = compiled(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state)), "the state was donated"
    return compiled, jax.device_get((after, report)), after


@pytest.mark.parametrize("mesh_name", [slow("data 8"), slow("fsdp 8"), "data 4 x fsdp 2", "data 2 x spatial 4"])
@pytest.mark.parametrize(
    ("backbone", "decoder"),
    [
        RESNET,
        slow("mobilenet_v2", "paper"),
        slow("resnet10_v1_slim", "paper"),
        slow("mobilenet_v2", "kerascv"),
        slow(*SEGFORMER),
    ],
)
def test_a_step_is_the_same_on_any_mesh(backbone, decoder, mesh_name):
    """Loss, gradients (the momentum, after one step), parameters, statistics and counts."""
    _, (one, one_report), _ = step_on_mesh(backbone, decoder, ONE)
    _, (many, many_report), _ = step_on_mesh(backbone, decoder, mesh_name)
    first = first_state(backbone, decoder)
    np.testing.assert_array_equal(one_report["confusion"], many_report["confusion"])
    assert one_report["confusion"].sum() == one_report["loss_count"] == 7 * (HEIGHT - 3) * _width(decoder)
    jax.tree.map(assert_close, (one, one_report), (many, many_report))
    changed = jax.tree.map(lambda before, after: np.any(before != after), first, one)
    assert all(jax.tree.leaves((changed.params, changed.batch_stats, changed.opt_state)))


def assert_close(one, many):
    """Relative to the largest value of the array. Gradients that cancel to zero are rounding of terms below 1."""
    np.testing.assert_allclose(one, many, rtol=0, atol=1e-9 * np.abs(one).max() + 1e-15)


def test_splitting_the_batch_exchanges_only_sums():
    # XLA:CPU gathers images for the gradients of its own depthwise kernels.
    compiled, _, _ = step_on_mesh(*RESNET, "data 8", operations="")
    assert set(collectives.count_collectives(compiled.as_text())) == {"all-reduce"}


@pytest.mark.parametrize(
    "terms", ["top_k_cross_entropy + lovasz", "ohem_cross_entropy + dice + boundary_cross_entropy"]
)
def test_a_loss_is_the_same_where_images_and_their_rows_are_split(terms):
    config = base_config().loss
    config.terms = terms
    loss = losses.make_loss(config, num_classes=CLASSES)
    compute = jax.jit(jax.value_and_grad(lambda logits, labels: loss(logits, labels)[0]))
    labels = random_batch()["label"]
    logits = np.random.default_rng(1).normal(size=(*labels.shape, CLASSES))
    mesh = mesh_of("data 2 x spatial 4")
    split = jax.device_put((logits, labels), sharding.image_sharding(mesh))
    jax.tree.map(assert_close, compute(jnp.asarray(logits), jnp.asarray(labels)), compute(*split))


def compile_toy_step(mesh: jax.sharding.Mesh, **options) -> jax.stages.Compiled:
    config = base_config()
    config.optimizer.learning_rate = 0.05
    with config.unlocked():
        config.optimizer.learning_rate_multipliers = ConfigDict()
    model = ToyNetwork(CLASSES)
    rule, schedule = optimizer.make(config.optimizer, 10, parts=toy_network.PARTS)
    shapes = sharding.with_shardings(TrainState.shapes(model, rule), mesh, fsdp_min_size=64)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    loss = losses.make_loss(config.loss, num_classes=CLASSES)
    step = make_train_step(model, rule, loss, learning_rate=schedule, shardings=shardings, **options)
    step = jax.jit(step, out_shardings=(shardings, sharding.replicated(mesh)))
    return step.lower(shapes, sharding.to_global(random_batch(), mesh)).compile()


@pytest.mark.parametrize("network", ["toy", slow("resnet")])
def test_splitting_an_accumulated_batch_exchanges_only_sums(network):
    if network == "resnet":
        compiled, _, _ = step_on_mesh(*RESNET, "data 4", 2, operations="")
    else:
        with jax.enable_x64(False):
            compiled = compile_toy_step(mesh_of("data 4"), accumulate_steps=2)
    assert set(collectives.count_collectives(compiled.as_text())) == {"all-reduce"}


def test_fsdp_gathers_parameters_and_no_activations():
    compiled, _, after = step_on_mesh(*RESNET, "fsdp 8", operations="")
    exchanged = collectives.find_collectives(compiled.as_text())
    gathered = {shape for item in exchanged if item.kind == "all-gather" for _, shape in item.arrays}
    split = {leaf.shape for leaf in jax.tree.leaves(after.params) if "fsdp" in leaf.sharding.spec}
    kernels = {shape for shape in split if len(shape) == 4}
    assert kernels <= gathered
    # The rest are vectors: BatchNorm's, whose statistics are split here too.
    assert {np.prod(shape) for shape in gathered - kernels} <= {np.prod(shape) for shape in split - kernels}


def test_a_state_on_a_mesh_takes_its_share_of_a_device():
    after = step_on_mesh(*RESNET, "fsdp 8")[2]
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(after))
    assert own < 0.15 * sum(leaf.nbytes for leaf in jax.tree.leaves(after))
    # Momentum is sharded like its parameter.
    for name in ("params", "opt_state/0/1/trace"):
        leaves = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                {"params": after.params, "opt_state": after.opt_state}
            )
        }
        kernel = leaves[f"{name}/backbone/stage4_block1/conv2/kernel"]
        assert kernel.sharding.spec == PartitionSpec(None, None, None, "fsdp")
        assert kernel.addressable_shards[0].data.shape == (3, 3, 192, 24)
    assert after.batch_stats["backbone"]["stage4_block1"]["norm1"]["mean"].sharding.spec == PartitionSpec("fsdp")
    assert after.rng.sharding.is_fully_replicated


def test_evaluating_is_the_same_on_any_mesh():
    results = []
    for name in (ONE, "data 4 x fsdp 2", "data 2 x spatial 4"):
        config = tiny_network_config(*RESNET, SIZES[name])
        mesh = mesh_lib.make_mesh(config.mesh)
        model = build_for_mesh(config, CLASSES, mesh)
        first = first_state(*RESNET)
        places = sharding.state_shardings(first.variables, mesh, fsdp_min_size=config.mesh.fsdp_min_size)
        step = make_eval_step(
            model, losses.make_loss(config.loss, num_classes=CLASSES), protocol=protocol_for(config), mesh=mesh
        )
        size = np.tile(np.array([[HEIGHT - 5, WIDTH]], np.int32), (8, 1))
        batch = random_batch() | {"size": size, "valid": np.arange(8) != 7}
        split = sharding.batch_sharding(mesh)
        outputs = dict.fromkeys(("loss_sum", "loss_count", "confusion", "num_images"), sharding.replicated(mesh))
        report = jax.jit(step, out_shardings=outputs | {"prediction": split})(
            jax.device_put(first.variables, places), sharding.to_global(batch, mesh)
        )
        np.testing.assert_array_equal(sharding.to_local(report["prediction"]), np.asarray(report["prediction"]))
        results.append(jax.device_get(report))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), results[0], other)
    assert results[0]["num_images"] == 7


# ---- States ----


def test_averages_and_momentum_are_sharded_like_their_parameters():
    config = tiny_network_config(*RESNET, SIZES["fsdp 8"])
    mesh = mesh_of("fsdp 8")
    rule, schedule = optimizer.make(config.optimizer, 10, parts=PARTS)
    shapes = TrainState.shapes(build_for_mesh(config, CLASSES, mesh), rule, averages=True)
    places = sharding.state_shardings(shapes, mesh, fsdp_min_size=64)
    assert places.ema_variables == places.variables
    split, momentum = (
        [place.spec for place in jax.tree.leaves(tree) if not place.is_fully_replicated]
        for tree in (places.params, places.opt_state)
    )
    assert split
    assert sorted(map(str, momentum)) == sorted(map(str, split))


# ---- Rows over devices ----


def split_rows(array, mesh):
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(None, "spatial")))


def with_gradient(operation):
    def run(x, cotangent):
        y, pullback = jax.vjp(operation, x)
        return y, *pullback(cotangent)

    return run


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 16])
def test_enlarging_split_rows_exchanges_one_row_per_neighbor(factor):
    """The gradient's rows come back to the pixel that they were made of, from half an enlarged row on each side."""
    mesh = mesh_of("data 2 x spatial 4")
    rng = np.random.default_rng(0)
    x, cotangent = rng.standard_normal((2, 8, 6, 3)), rng.standard_normal((2, 8 * factor, 6 * factor, 3))
    size = cotangent.shape[1:3]
    expected = with_gradient(lambda x: ops.XLA.resize_bilinear(x, size))(x, cotangent)
    function = with_gradient(lambda x: ops.SPATIAL.resize_bilinear(x, size))
    placed = split_rows(x, mesh), split_rows(cotangent, mesh)
    function = jax.jit(function, out_shardings=tuple(array.sharding for array in placed))
    for split, whole in zip(function(*placed), expected, strict=True):
        np.testing.assert_allclose(split, whole, **TOLERANCE)
    compiled = function.lower(*(array.astype(jnp.float32) for array in placed)).compile()  # the type that trains
    exchanged = collectives.find_collectives(compiled.as_text())
    assert {collective.kind for collective in exchanged} == {"collective-permute"}
    rows = [shape[1] for collective in exchanged for _, shape in collective.arrays]
    assert sorted(rows) == [1, 1, factor // 2, factor // 2]


@pytest.mark.parametrize(
    ("size", "align_corners"), [((12, 9), False), ((4, 3), False), ((29, 21), True), ((16, 12), True), ((8, 24), False)]
)
def test_resizing_split_rows_by_other_factors_is_correct(size, align_corners):
    mesh = mesh_of("data 2 x spatial 4")
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 3))
    resized = [
        jax.jit(lambda x, kind=kind: kind.resize_bilinear(x, size, align_corners=align_corners))(x)
        for kind, x in ((ops.XLA, x), (ops.SPATIAL, split_rows(x, mesh)))
    ]
    np.testing.assert_allclose(*resized, **TOLERANCE)


def test_counting_split_rows_gathers_none():
    mesh = mesh_of("data 2 x spatial 4")
    labels = sharding.to_global(random_batch(), mesh)["label"]
    function = jax.jit(lambda labels: metrics.confusion_matrix(labels, labels % 3, num_classes=CLASSES))
    compiled = function.lower(labels).compile()
    assert set(collectives.count_collectives(compiled.as_text())) == {"all-reduce"}
    np.testing.assert_array_equal(compiled(labels), function(random_batch()["label"]))


# ---- Training ----


@pytest.mark.slow
def test_a_run_is_evaluated_on_another_mesh(tiny_config, tmp_path, compilation_cache):
    with jax.enable_x64(False):
        tiny_config.train.ema_decay = 0.5
        tiny_config.mesh.update({"data": 2, "fsdp": 4, "fsdp_min_size": 64})
        scores = train(tiny_config, tmp_path / "run")
        tiny_config.mesh.update({"data": 2, "fsdp": 1, "spatial": 2})
        tiny_config.eval.protocol = "guide"
        tiny_config.data.image_size = (64, 32)  # two rows a device at stride 16
        guide = evaluate(tmp_path / "run", config=tiny_config)
        tiny_config.mesh.update({"data": 1, "spatial": 1})
        assert evaluate(tmp_path / "run", config=tiny_config)["mean_iou"] == pytest.approx(guide["mean_iou"])
    assert scores["step"] == guide["step"] == 2
