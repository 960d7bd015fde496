"""The train step and the evaluation step: accumulation, averages, ignored pixels, counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from deeplab_jax import losses, ops
from deeplab_jax.config import base_config
from deeplab_jax.data.protocol import Squeeze, Whole
from deeplab_jax.evaluation.step import inside, make_eval_step
from deeplab_jax.models import PARTS, build_model
from deeplab_jax.training import optimizer
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import make_train_step
from tests.support import toy_network
from tests.support.toy_network import ToyNetwork

CLASSES = 4
SIZE = 24


def random_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (size, SIZE, SIZE), dtype=np.uint8)
    label[:, :3] = 255
    return {"image": rng.integers(0, 256, (size, SIZE, SIZE, 3), dtype=np.uint8), "label": label}


def make_deeplab_step(dtype="float32", *, freeze_norm_statistics=False, **options):
    """A small DeepLab, its first state and the step."""
    config = base_config()
    config.model.update(backbone="resnet10_v1_slim", atrous_rates=(1, 2), decoder="kerascv")
    config.model.update(aspp_channels=8, decoder_channels=8, low_level_channels=8)
    config.model.freeze_norm_statistics = freeze_norm_statistics
    config.optimizer.update(learning_rate=0.05, weight_decay=1e-3)
    return make_step(build_model(config.model, CLASSES, compute_dtype=dtype), config, PARTS, **options)


def make_toy_step(dtype="float32", *, weight_decay=1e-3, freeze_norm_statistics=False, frozen=(), **options):
    """The toy network, its first state and the step."""
    config = base_config()
    config.optimizer.update(learning_rate=0.05, weight_decay=weight_decay, frozen=frozen)
    with config.unlocked():
        config.optimizer.learning_rate_multipliers = ConfigDict()
    model = ToyNetwork(CLASSES, dtype=jnp.dtype(dtype), freeze_norm_statistics=freeze_norm_statistics)
    return make_step(model, config, toy_network.PARTS, **options)


def make_step(model, config, parts, **options):
    rule, schedule = optimizer.make(config.optimizer, 10, parts=parts)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = TrainState.create_on(device, model, rule, seed=0, averages="ema_rate" in options)
    options = {"loss_fn": losses.make_loss(config.loss, num_classes=CLASSES)} | options
    step = make_train_step(model, rule, learning_rate=schedule, frozen=tuple(config.optimizer.frozen), **options)
    return model, state, step


def float64(state):
    wide = {np.dtype(np.float32): np.float64}
    return jax.tree.map(lambda leaf: np.asarray(leaf, wide.get(leaf.dtype, leaf.dtype)), jax.device_get(state))


def half_labeled_batch():
    """What is labeled differs between the examples, so that a mean of means is not the mean."""
    batch = random_batch()
    batch["label"][:2] = 255
    batch["label"][2, 5:] = 255
    return batch


def assert_close(one, other):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * np.abs(one).max() + 1e-15)


def test_gradients_of_frozen_parameters_are_not_computed():
    batch, compiled, reports = random_batch(), {}, {}
    for name, frozen in (("none", ()), ("backbone", ("backbone",)), ("stem", ("backbone/stem*",))):
        _, state, step = make_toy_step(frozen=frozen)
        compiled[name] = jax.jit(step).lower(state, batch).compile()
        _, reports[name] = compiled[name](state, batch)
    flops = {name: program.cost_analysis()["flops"] for name, program in compiled.items()}
    # The forward pass remains: a third, and the head is small.
    assert flops["backbone"] < 0.5 * flops["none"]
    assert flops["backbone"] < flops["stem"] < flops["none"]
    loss_sums = {name: float(report["loss_sum"]) for name, report in reports.items()}
    assert loss_sums["backbone"] == pytest.approx(loss_sums["none"], rel=1e-5)  # float32, two programs
    norms = {name: report["gradient_norm"] for name, report in reports.items()}
    assert 0 < norms["backbone"] < norms["stem"] < norms["none"]


@pytest.mark.parametrize("make", [make_toy_step, pytest.param(make_deeplab_step, marks=pytest.mark.slow)])
def test_an_accumulated_step_equals_the_unsplit_one_with_frozen_statistics(make):
    with jax.enable_x64(True):
        results = []
        for parts in (1, 4):
            _, state, step = make("float64", freeze_norm_statistics=True, accumulate_steps=parts)
            results.append(jax.device_get(jax.jit(step)(float64(state), half_labeled_batch())))
        jax.tree.map(assert_close, *results)


def test_batch_norm_sees_one_part_of_an_accumulated_batch_at_a_time():
    """Against one function for the whole step: each part has its own statistics, and the loss is the mean over all."""
    with jax.enable_x64(True):
        model, state, step = make_toy_step("float64", weight_decay=0.0, accumulate_steps=2)
        state, batch = float64(state), half_labeled_batch()
        loss_fn = losses.make_loss(base_config().loss, num_classes=CLASSES)

        def mean_loss(params):
            batch_stats, sums = state.batch_stats, []
            for k in range(2):
                (logits, _), updates = model.apply(
                    {"params": params, "batch_stats": batch_stats},
                    batch["image"][k::2],
                    train=True,
                    mutable=["batch_stats"],
                )
                batch_stats = updates["batch_stats"]
                sums.append(loss_fn(logits, jnp.asarray(batch["label"][k::2])))
            return sum(part for part, _ in sums) / sum(count for _, count in sums), batch_stats

        gradients, batch_stats = jax.jit(jax.grad(mean_loss, has_aux=True))(state.params)
        after, report = jax.jit(step)(state, batch)
        expected = jax.tree.map(lambda param, gradient: param - 0.05 * gradient, state.params, gradients)
        jax.tree.map(assert_close, expected, after.params)
        jax.tree.map(assert_close, batch_stats, after.batch_stats)
        assert int(report["confusion"].sum()) == int(report["loss_count"]) == (batch["label"] != 255).sum()
        assert (int(after.step), int(after.examples_seen)) == (1, 8)


def test_a_loss_of_several_terms_is_that_of_the_whole_batch_in_any_number_of_parts():
    """Each term divides by a count of its own, of which every part of the batch has another share."""
    terms = "cross_entropy + 0.5 * dice + 2 * top_k_cross_entropy(fraction=0.1, gradual_steps=4)"
    config = base_config()
    config.loss.update(terms=terms, class_weights=(1.0, 2.0, 0.5, 3.0))
    loss_fn = losses.make_loss(config.loss, num_classes=CLASSES)
    results = []
    with jax.enable_x64(True):
        for parts in (1, 4):
            model, state, step = make_toy_step(
                "float64", freeze_norm_statistics=True, loss_fn=loss_fn, accumulate_steps=parts
            )
            state, batch = float64(state).replace(step=np.int32(3)), half_labeled_batch()
            results.append(jax.jit(step)(state, batch))
        jax.tree.map(assert_close, *results)
        after, report = results[0]
        (logits, _), _ = model.apply(state.variables, batch["image"], train=True, mutable=["batch_stats"])
        options = {"class_weights": (1.0, 2.0, 0.5, 3.0)}
        labels = jnp.asarray(batch["label"])
        mining = {"fraction": 0.1, "gradual_steps": 4, "step": 3}
        expected = {
            "cross_entropy": losses.softmax_cross_entropy(logits, labels, **options),
            "dice": losses.dice(logits, labels),
            "top_k_cross_entropy": losses.top_k_cross_entropy(logits, labels, **mining, **options),
        }
        factors = {"dice": 0.5, "top_k_cross_entropy": 2.0}
        expected = {name: factors.get(name, 1) * float(total / count) for name, (total, count) in expected.items()}
        shares = {name: float(total / count) for name, (total, count) in report["loss_terms"].items()}
        assert shares == pytest.approx(expected, rel=1e-9)
        assert report["loss_sum"] / report["loss_count"] == pytest.approx(sum(expected.values()), rel=1e-9)
        assert int(report["loss_count"]) == 8


def test_averages_follow_parameters_and_statistics():
    _, state, step = make_toy_step(ema_rate=0.25)
    before = state.replace(ema_variables=jax.tree.map(lambda leaf: leaf + 1, state.variables))
    after, _ = jax.jit(step)(before, random_batch())
    assert after.evaluated_variables is after.ema_variables
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, before.ema_variables, after.variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after.ema_variables, expected)


def scaled_loss(logits, labels, teacher_logits=None):
    """A loss that the batch's teacher scales: NaN and infinity make the step not finite."""
    return jnp.sum(logits) * jnp.max(teacher_logits), jnp.int32(labels.size)


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_skipped_step_changes_only_the_counters(scale):
    _, state, step = make_toy_step(loss_fn=scaled_loss, ema_rate=0.25, skip_nonfinite=True)
    batch = random_batch() | {"teacher_logits": np.full((8, SIZE, SIZE, CLASSES), scale, np.float32)}
    after, report = jax.jit(step)(state, batch)
    assert not np.isfinite(report["loss_sum"])
    assert (int(after.step), int(after.examples_seen)) == (1, 8)
    for before, leaf in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(after.opt_state), strict=True):
        expected = before if jnp.issubdtype(leaf.dtype, jnp.floating) else before + 1
        np.testing.assert_array_equal(leaf, expected)
    jax.tree.map(np.testing.assert_array_equal, after.variables, state.variables)
    jax.tree.map(np.testing.assert_array_equal, after.ema_variables, state.ema_variables)


def test_skipping_does_not_change_a_finite_step():
    batch = random_batch() | {"teacher_logits": np.full((8, SIZE, SIZE, CLASSES), 0.3, np.float32)}
    results = []
    for skip in (False, True):
        _, state, step = make_toy_step(loss_fn=scaled_loss, ema_rate=0.25, skip_nonfinite=skip)
        results.append(jax.jit(step)(state, batch)[0])
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.fixture(scope="module")
def jitted():
    model, state, step = make_toy_step()
    return model, state, jax.jit(step)


def test_a_step_counts_what_it_saw(jitted):
    _, state, step = jitted
    after, report = step(state, random_batch())
    labeled = 8 * (SIZE - 3) * SIZE
    assert (int(after.step), int(after.examples_seen)) == (1, 8)
    assert int(report["loss_count"]) == int(report["confusion"].sum()) == labeled
    assert report["confusion"].dtype == jnp.int32
    np.testing.assert_array_equal(
        np.asarray(report["confusion"]).sum(axis=1), np.bincount(random_batch()["label"][:, 3:].ravel())
    )
    np.testing.assert_allclose(report["learning_rate"], 0.05)
    assert float(report["gradient_norm"]) > 0


def test_a_batch_without_labels_is_harmless(jitted):
    _, state, step = jitted
    batch = random_batch() | {"label": np.full((8, SIZE, SIZE), 255, np.uint8)}
    after, report = step(state, batch)
    assert float(report["loss_sum"]) == int(report["loss_count"]) == int(report["confusion"].sum()) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def test_a_separable_task_is_learned(jitted):
    """White is one class, black another: a few steps tell them apart."""
    _, state, step = jitted
    label = np.zeros((8, SIZE, SIZE), np.uint8)
    label[:, :, SIZE // 2 :] = 1
    batch = {"image": np.repeat(255 * label[..., None], 3, axis=-1), "label": label}
    means = []
    for _ in range(12):
        state, report = step(state, batch)
        means.append(float(report["loss_sum"]) / int(report["loss_count"]))
    assert means[0] == pytest.approx(np.log(CLASSES), rel=0.05)  # logits begin near zero
    assert means[-1] < 0.8 * means[0]


def test_padding_and_filled_up_examples_do_not_count(jitted):
    """Padded images in a batch that is not full score as each of them does alone."""
    model, state, _ = jitted
    loss_fn = losses.make_loss(base_config().loss, num_classes=CLASSES)
    step = jax.jit(make_eval_step(model, loss_fn, protocol=Whole((SIZE, SIZE))))
    rng = np.random.default_rng(1)
    batch = random_batch(4) | {
        "size": np.array([[24, 24], [20, 13], [5, 24], [24, 24]], np.int32),
        "valid": np.array([True, True, True, False]),
    }
    batch["label"] = rng.integers(
        0, CLASSES, batch["label"].shape, dtype=np.uint8
    )  # also outside, where it must not count
    together = step(state.variables, batch)
    assert "confidence" not in together
    assert int(together["num_images"]) == 3
    assert int(together["loss_count"]) == int(together["confusion"].sum()) == 24 * 24 + 20 * 13 + 5 * 24
    singles = [step(state.variables, {name: value[[i]] for name, value in batch.items()}) for i in range(4)]
    np.testing.assert_array_equal(together["confusion"], sum(np.asarray(single["confusion"]) for single in singles))
    np.testing.assert_allclose(  # sums of float32 in another order
        together["loss_sum"], sum(float(single["loss_sum"]) for single in singles), rtol=1e-5
    )


def test_squeezed_logits_come_back_at_the_images_size(jitted):
    model, state, _ = jitted
    loss_fn = losses.make_loss(base_config().loss, num_classes=CLASSES)
    step = jax.jit(make_eval_step(model, loss_fn, protocol=Squeeze((SIZE, SIZE))))
    sizes = np.array([[30, 17], [12, 40]], np.int32)
    label = np.zeros((2, 30, 40), np.uint8)
    batch = random_batch(2) | {"label": label, "size": sizes, "valid": np.array([True, True])}
    report = step(state.variables, batch)
    assert int(report["confusion"].sum()) == 30 * 17 + 12 * 40
    logits, _ = model.apply(state.variables, batch["image"], train=False)
    for i, (height, width) in enumerate(sizes):
        expected = jax.image.resize(logits[i], (height, width, CLASSES), "bilinear", antialias=False).argmax(axis=-1)
        got = np.asarray(report["prediction"][i, :height, :width])
        # Two classes may tie within rounding at a pixel or two.
        assert (got == np.asarray(expected)).mean() > 0.99


@pytest.mark.parametrize("protocol", [Whole, Squeeze])
def test_several_views_are_scored_by_their_mean_probabilities(jitted, protocol):
    model, state, _ = jitted
    loss_fn = losses.make_loss(base_config().loss, num_classes=CLASSES)
    options = {"protocol": protocol((SIZE, SIZE)), "scales": (1.5,), "flip": True}
    step = jax.jit(make_eval_step(model, loss_fn, with_confidence=True, **options))
    sizes = np.array([[24, 24], [20, 13]], np.int32)
    batch = random_batch(2) | {"size": sizes, "valid": np.array([True, True])}
    report = step(state.variables, batch)
    apply = jax.jit(lambda variables, image: model.apply(variables, image, train=False)[0])  # 1.5 * 23 + 1 is 35.5
    loss_sum, count, confusion = 0.0, 0, np.zeros((CLASSES, CLASSES), int)
    for i, (height, width) in enumerate(sizes.tolist()):
        mean = 0
        image = jax.image.resize(
            batch["image"][i : i + 1].astype(np.float32), (1, 35, 35, 3), "bilinear", antialias=False
        )
        for mirror in (1, -1):
            logits = apply(state.variables, image[:, :, ::mirror])[:, :, ::mirror]
            part = (35, 35) if protocol is Squeeze else (height * 35 / 24, width * 35 / 24)
            logits = ops.resize_to_sizes(logits, jnp.array([part]), jnp.array([[height, width]]), (24, 24))
            mean += jax.nn.softmax(logits[0, :height, :width]) / 2
        label = batch["label"][i, :height, :width]
        labeled = label != 255
        mean, label = np.asarray(mean)[labeled], label[labeled]
        confidence = np.asarray(report["confidence"][i, :height, :width])[labeled]
        np.testing.assert_allclose(confidence, mean.max(axis=-1), rtol=1e-5)  # float32, in another order
        loss_sum -= np.log(mean[np.arange(len(label)), label]).sum()
        count += len(label)
        np.add.at(confusion, (label, mean.argmax(axis=-1)), 1)
    assert int(report["loss_count"]) == count
    np.testing.assert_allclose(report["loss_sum"], loss_sum, rtol=1e-5)  # float32, in another order
    assert np.abs(np.asarray(report["confusion"]) - confusion).sum() <= 4  # a pixel or two where classes tie


def test_inside_marks_each_images_own_pixels():
    mask = np.asarray(inside(jnp.array([[2, 3], [4, 1]]), (4, 4)))
    assert mask[0].sum() == 6
    assert mask[0, :2, :3].all()
    assert mask[1].sum() == 4
    assert mask[1, :, 0].all()
