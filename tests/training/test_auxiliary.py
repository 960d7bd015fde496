"""The auxiliary head in training: its loss, its gradient, its learning rate, and what happens to it elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import losses
from deeplab_jax.analysis.summary import count_multiply_adds
from deeplab_jax.config import base_config
from deeplab_jax.errors import UserError
from deeplab_jax.models import PARTS, abstract_variables, build_model
from deeplab_jax.pretrained import bundle, from_pretrained
from deeplab_jax.pretrained.network import PretrainedNetwork, voc_or_numbered_labels
from deeplab_jax.training import optimizer
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import make_train_step
from tests.models.support import random_values
from tests.training.test_step import CLASSES, SIZE, assert_close, half_labeled_batch
from tests.training.test_step import float64 as in_float64


def make_config():
    config = base_config()
    config.model.update(backbone="resnet10_v1_slim", atrous_rates=(), decoder="kerascv", freeze_norm_statistics=True)
    config.model.update(aspp_channels=8, decoder_channels=8, low_level_channels=8)
    config.model.update(auxiliary_channels=6, auxiliary_features="stage2", auxiliary_dropout=0.0)
    config.optimizer.update(learning_rate=0.05, schedule="constant", momentum=0.0)
    return config


def make_program(**optimizer_fields):
    """The network in float64, its state, `step(state, batch, auxiliary weight, options)`, and the loss."""
    config = make_config()
    config.optimizer.update(optimizer_fields)
    model = build_model(config.model, CLASSES, compute_dtype="float64")
    rule, schedule = optimizer.make(config.optimizer, 10, parts=PARTS)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = in_float64(TrainState.create_on(device, model, rule, seed=0, averages=False))
    loss = losses.make_loss(config.loss, num_classes=CLASSES)

    def step(state, batch, weight, **options):
        options = {"frozen": tuple(config.optimizer.frozen), "auxiliary_weight": weight} | options
        return make_train_step(model, rule, loss, learning_rate=schedule, **options)(state, batch)

    return model, state, step, loss


@pytest.fixture(scope="module")
def program():
    with jax.enable_x64(True):
        model, state, step, loss = make_program()
        yield model, state, jax.jit(step, static_argnums=2), loss


def test_the_loss_is_that_of_the_logits_plus_the_weighted_one_of_the_auxiliary_logits(program):
    model, state, step, loss = program
    batch = half_labeled_batch()

    @jax.jit
    def expected(variables, batch):
        (logits, endpoints), _ = model.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        assert endpoints["auxiliary_logits"].shape == (8, SIZE // 8, SIZE // 8, CLASSES)
        auxiliary = model.resize(endpoints["auxiliary_logits"], (SIZE, SIZE))
        return [loss(values, batch["label"])[0] for values in (logits, auxiliary)]

    main, auxiliary = expected(state.variables, batch)
    for weight in (0.0, 0.4):
        _, report = step(state, batch, weight)
        assert_close(report["loss_sum"], main + weight * auxiliary)


def test_the_gradient_of_the_auxiliary_loss_reaches_its_head_and_the_backbone_below_it(program):
    _, state, step, _ = program
    batch = half_labeled_batch()
    off, on = (step(state, batch, weight)[0].params for weight in (0.0, 0.4))

    def changes(one, other):
        return [float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]

    assert not any(changes(off["auxiliary"], state.params["auxiliary"]))
    assert all(changes(on["auxiliary"], state.params["auxiliary"]))
    for part in ("aspp", "decoder", "classifier"):
        assert not any(changes(on[part], off[part]))
    for name in off["backbone"]:
        reached = name.startswith(("stem", "stage1", "stage2"))
        assert any(changes(on["backbone"][name], off["backbone"][name])) == reached, name


@pytest.mark.slow
def test_accumulated_parts_give_the_auxiliary_gradient_of_the_whole_batch(float64):
    _, state, step, _ = make_program()
    batch = half_labeled_batch()
    whole, whole_report = jax.jit(lambda *inputs: step(*inputs, 0.4))(state, batch)
    parts, parts_report = jax.jit(lambda *inputs: step(*inputs, 0.4, accumulate_steps=4))(state, batch)
    jax.tree.map(assert_close, (whole.params, whole_report["loss_sum"]), (parts.params, parts_report["loss_sum"]))


@pytest.mark.slow
def test_a_frozen_auxiliary_head_does_not_change(float64):
    _, state, step, _ = make_program(frozen=("auxiliary",))
    params = jax.jit(lambda *inputs: step(*inputs, 0.4))(state, half_labeled_batch())[0].params
    jax.tree.map(np.testing.assert_array_equal, params["auxiliary"], state.params["auxiliary"])
    before, after = (tree["backbone"]["stem_conv1"]["kernel"] for tree in (state.params, params))
    assert np.abs(after - before).max() > 0


def test_the_learning_rate_of_the_auxiliary_head_has_a_multiplier():
    config = make_config()
    config.optimizer.learning_rate_multipliers.auxiliary = 10.0
    rule, _ = optimizer.make(config.optimizer, 10, parts=PARTS)
    params = {part: {"kernel": jnp.ones((1, 1, 1, 1))} for part in ("auxiliary", "classifier")}
    updates, _ = rule.update(params, rule.init(params), params)
    np.testing.assert_allclose(updates["auxiliary"]["kernel"], 10 * updates["classifier"]["kernel"], rtol=1e-6)


def test_inference_does_not_compute_the_auxiliary_head():
    model = build_model(make_config().model, CLASSES)
    variables, images = abstract_variables(model), jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    assert "auxiliary" in variables["params"]
    _, endpoints = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    assert "auxiliary_logits" not in endpoints
    assert not any("auxiliary" in path for path, _ in count_multiply_adds(model, variables, images))


# ---- Networks with and without an auxiliary head ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved network with an auxiliary head."""
    model = make_config().model
    variables = jax.tree.map(np.asarray, random_values(abstract_variables(build_model(model, CLASSES))))
    path = tmp_path_factory.mktemp("auxiliary") / "net"
    bundle.save(PretrainedNetwork(model, variables, voc_or_numbered_labels(CLASSES)), path)
    return path


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_a_saved_network_keeps_its_auxiliary_head(folder, caplog):
    model, variables = from_pretrained(folder)
    assert model.auxiliary_channels == 6
    assert same(variables, bundle.load(folder).variables)
    assert not caplog.messages


def test_other_classes_initialize_both_classifiers(folder, caplog):
    _, variables = from_pretrained(folder, num_classes=3)
    loaded = bundle.load(folder).variables["params"]
    auxiliary = variables["params"]["auxiliary"]
    assert auxiliary["classifier"]["kernel"].shape == (1, 1, 6, 3)
    assert np.std(auxiliary["classifier"]["kernel"]) > 0
    assert same(auxiliary["refine"], loaded["auxiliary"]["refine"])
    assert same(variables["params"]["decoder"], loaded["decoder"])
    (message,) = caplog.messages
    assert message.endswith(
        "newly initialized: classifier, params/auxiliary/classifier/bias, params/auxiliary/classifier/kernel"
    )


def test_the_head_can_be_left_out_and_added(folder, tmp_path, caplog):
    model, variables = from_pretrained(folder, auxiliary_channels=0)
    assert "auxiliary" not in variables["params"]
    network = bundle.load(folder)
    fields = network.model.copy_and_resolve_references()
    fields.auxiliary_channels = 0
    bundle.save(dataclasses.replace(network, model=fields, variables=jax.device_get(variables)), tmp_path / "without")
    caplog.clear()
    _, variables = from_pretrained(tmp_path / "without", auxiliary_channels=6)
    assert np.std(variables["params"]["auxiliary"]["refine"]["conv"]["kernel"]) > 0
    assert same(variables["params"]["decoder"], network.variables["params"]["decoder"])
    assert [message.rpartition("; ")[2] for message in caplog.messages] == ["newly initialized: auxiliary"]


def test_another_part_must_fit(folder):
    with pytest.raises(UserError, match="the networks differ: .*decoder"):
        from_pretrained(folder, decoder_channels=4)
