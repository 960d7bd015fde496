"""Optimizers against numbers of Keras and PyTorch, optax's SGD, and formulas of papers in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax import models
from deeplab_jax.errors import UserError
from deeplab_jax.training.optimizer import make, make_schedule
from tests.training.optimizer_runs import (
    assert_trees_close,
    buffers,
    gradients_like,
    kernel,
    network,
    options,
    run,
)


def test_the_keras_rule_reproduces_the_numbers_of_keras(float64):
    # What Keras 3's SGD(0.1, momentum=0.9, weight_decay=0.01, clipnorm=1) makes of these gradients.
    optimizer = options(
        momentum_rule="keras", clip="per_variable", clip_norm=1.0, weight_decay=0.01, weight_decay_rule="decoupled_all"
    )
    first, _ = run(optimizer, kernel([3.0, 4.0]), [kernel([30.0, 40.0])])
    second, state = run(optimizer, kernel([3.0, 4.0]), [kernel([30.0, 40.0]), kernel([0.3, 0.4])])
    np.testing.assert_allclose(first["aspp"]["kernel"], [2.937, 3.916], rtol=1e-7)  # the digits that are known
    np.testing.assert_allclose(second["aspp"]["kernel"], [2.850063, 3.800084], rtol=1e-7)
    np.testing.assert_allclose(buffers(state)[0], [-0.084, -0.112], rtol=1e-7)


def keras_sgd(w, gradients, rates, *, momentum, nesterov, decay, clip):
    """Keras 3's SGD as its documentation has it."""
    m = np.zeros_like(w)
    for g, rate in zip(gradients, rates, strict=True):
        g = g * clip / max(np.sqrt((g**2).sum()), clip)
        w = w - w * decay * rate
        m = momentum * m - rate * g
        w = w + (momentum * m - rate * g if nesterov else m)
    return w


def pytorch_sgd(w, gradients, rates, *, momentum, nesterov, decay):
    """torch.optim.SGD as its documentation has it."""
    buffer = np.zeros_like(w)
    for g, rate in zip(gradients, rates, strict=True):
        g = g + decay * w
        buffer = momentum * buffer + g
        w = w - rate * (g + momentum * buffer if nesterov else buffer)
    return w


@pytest.mark.parametrize("nesterov", [False, True])
def test_both_rules_follow_their_originals_while_the_rate_changes(float64, nesterov):
    rng = np.random.default_rng(0)
    w, gradients = rng.normal(size=(3, 4)), list(rng.normal(size=(6, 3, 4)))
    trees = [kernel(g) for g in gradients]
    common = {"schedule": "cosine", "nesterov": nesterov, "weight_decay": 0.02}
    rates = [0.1 * 0.5 * (1 + np.cos(np.pi * t / 8)) for t in range(6)]

    classic, _ = run(options(**common), kernel(w), trees, total_steps=8)
    expected = pytorch_sgd(w, gradients, rates, momentum=0.9, nesterov=nesterov, decay=0.02)
    np.testing.assert_allclose(classic["aspp"]["kernel"], expected, rtol=1e-9)  # float64, a dozen roundings

    keras = options(
        **common, momentum_rule="keras", weight_decay_rule="decoupled_all", clip="per_variable", clip_norm=2.0
    )
    result, _ = run(keras, kernel(w), trees, total_steps=8)
    expected = keras_sgd(w, gradients, rates, momentum=0.9, nesterov=nesterov, decay=0.02, clip=2.0)
    np.testing.assert_allclose(result["aspp"]["kernel"], expected, rtol=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "poly"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_classic_is_the_sgd_of_optax(float64, schedule, momentum):
    params = network(np.float64)
    gradients = gradients_like(params, 4)
    optimizer = options(schedule=schedule, momentum=momentum)
    result, _ = run(optimizer, params, gradients, total_steps=5)
    rule = optax.sgd(make_schedule(optimizer, 5), momentum=momentum)
    state = rule.init(params)
    for gradient in gradients:
        updates, state = rule.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    assert_trees_close(result, params, rtol=1e-9)  # float64, a dozen roundings


def test_the_momentum_rules_differ_only_while_the_rate_changes(float64):
    params = network(np.float64)
    gradients = gradients_like(params, 4)
    for schedule, equal in (("constant", True), ("cosine", False)):
        results = [
            run(options(schedule=schedule, momentum_rule=rule), params, gradients, total_steps=5)[0]["aspp"]["conv"]
            for rule in ("classic", "keras")
        ]
        assert np.allclose(*(result["kernel"] for result in results), rtol=1e-9, atol=0) == equal


def test_schedules_follow_their_formulas(float64):
    t = np.minimum(np.arange(20), 15) / 15  # constant past the end
    for fields, expected in (
        ({"schedule": "constant"}, np.full(20, 0.1)),
        ({"schedule": "cosine"}, 0.05 * (1 + np.cos(np.pi * t))),
        ({"schedule": "poly", "poly_power": 0.9}, 0.1 * (1 - t) ** 0.9),
        ({"schedule": "poly", "poly_power": 2.0}, 0.1 * (1 - t) ** 2),
        ({"schedule": "step"}, 0.1 * np.select([np.arange(20) < 8, np.arange(20) < 11], [1, 0.1], 0.01)),
        (
            {"schedule": "step", "milestones": (0.8, 0.2), "milestone_factor": 0.5},
            0.1 * np.select([np.arange(20) < 3, np.arange(20) < 12], [1, 0.5], 0.25),
        ),
        ({"schedule": "step", "milestones": ()}, np.full(20, 0.1)),
    ):
        schedule = jax.jit(make_schedule(options(**fields), 15))
        rates = [schedule(jnp.asarray(step, jnp.int32)) for step in range(20)]
        # optax holds some constants in float32 whatever the precision of the rest: half a unit of its last place.
        np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-9)


def test_warmup_rises_linearly_from_zero_and_the_decay_takes_the_remaining_steps(float64):
    schedule = jax.jit(make_schedule(options(schedule="cosine"), 30, warmup_steps=10))
    rates = np.array([schedule(jnp.asarray(step, jnp.int32)) for step in range(31)])
    np.testing.assert_allclose(rates[:10], 0.1 * np.arange(10) / 10, rtol=1e-6)  # as above
    np.testing.assert_allclose(rates[10:], 0.05 * (1 + np.cos(np.pi * np.arange(21) / 20)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("linear", 0.02 + 0.08 * np.arange(10) / 10), ("constant", np.full(10, 0.02))],  # constant: a slow start
)
def test_warmup_starts_at_its_own_rate(float64, rule, expected):
    fields = {"schedule": "poly", "warmup_rule": rule, "warmup_learning_rate": 0.02}
    schedule = jax.jit(make_schedule(options(**fields), 30, warmup_steps=10))
    rates = np.array([schedule(jnp.asarray(step, jnp.int32)) for step in range(31)])
    np.testing.assert_allclose(rates[:10], expected, rtol=1e-6)  # as above
    np.testing.assert_allclose(rates[10:], 0.1 * (1 - np.arange(21) / 20) ** 0.9, rtol=1e-6, atol=1e-9)


def test_the_guides_schedule_starts_and_ends_where_keras_does():
    schedule = make_schedule(options(schedule="cosine", learning_rate=0.00175), 2124)
    assert float(schedule(0)) == pytest.approx(0.00175, rel=1e-6)  # float32
    assert float(schedule(1062)) == pytest.approx(0.000875, rel=1e-6)
    assert float(schedule(2124)) == pytest.approx(0, abs=1e-9)


def test_clipping_by_variable_and_by_global_norm(float64):
    gradient = {"aspp": {"kernel": jnp.array([30.0, 40.0])}, "decoder": {"kernel": jnp.array([0.6, 0.8])}}
    params = jax.tree.map(jnp.zeros_like, gradient)
    per_variable, _ = run(options(clip="per_variable", clip_norm=5.0), params, [gradient])
    together, _ = run(options(clip="global", clip_norm=5.0), params, [gradient])
    factor = -0.1 * 5 / np.sqrt(2501)
    # The rate is a float32 constant inside optax.
    np.testing.assert_allclose(per_variable["aspp"]["kernel"], [-0.3, -0.4], rtol=1e-7)
    np.testing.assert_allclose(per_variable["decoder"]["kernel"], [-0.06, -0.08], rtol=1e-7)
    np.testing.assert_allclose(together["aspp"]["kernel"], factor * np.array([30, 40]), rtol=1e-7)
    np.testing.assert_allclose(together["decoder"]["kernel"], factor * np.array([0.6, 0.8]), rtol=1e-7)


def test_a_gradient_of_zero_is_clipped_to_zero():
    params = kernel([1.0, 2.0])
    for clip in ("per_variable", "global"):
        result, _ = run(options(clip=clip, clip_norm=1.0), params, [jax.tree.map(jnp.zeros_like, params)])
        np.testing.assert_array_equal(result["aspp"]["kernel"], [1.0, 2.0])


def test_coupled_decay_is_inside_the_clipped_gradient_and_decoupled_decay_outside(float64):
    params = kernel([300.0, 400.0])
    none = [jax.tree.map(jnp.zeros_like, params)]
    clip = {"clip": "per_variable", "clip_norm": 1.0, "weight_decay": 0.1}
    coupled, _ = run(options(**clip), params, none)
    decoupled, _ = run(options(**clip, weight_decay_rule="decoupled_all"), params, none)
    np.testing.assert_allclose(coupled["aspp"]["kernel"], [300 - 0.06, 400 - 0.08], rtol=1e-9)
    np.testing.assert_allclose(decoupled["aspp"]["kernel"], [297, 396], rtol=1e-9)


@pytest.mark.parametrize(
    ("decay_rule", "decayed"),
    [
        ("coupled_kernels", {"kernel"}),
        ("decoupled_all", {"kernel", "scale", "bias"}),
        ("decoupled_kernels", {"kernel"}),
    ],
)
@pytest.mark.parametrize("rule", ["classic", "keras"])
def test_each_decay_rule_touches_its_variables(decay_rule, decayed, rule):
    params = jax.tree.map(jnp.ones_like, network())
    none = jax.tree.map(jnp.zeros_like, params)
    result, _ = run(options(weight_decay=0.1, weight_decay_rule=decay_rule, momentum_rule=rule), params, [none])
    moved = {path[-1].key for path, leaf in jax.tree_util.tree_leaves_with_path(result) if np.any(leaf != 1)}
    assert moved == decayed


@pytest.mark.parametrize("rule", ["classic", "keras"])
def test_multipliers_scale_the_rate_of_their_part(float64, rule):
    params = network(np.float64)
    gradients = gradients_like(params, 3)
    common = {"schedule": "poly", "momentum_rule": rule, "weight_decay": 0.1, "weight_decay_rule": "decoupled_all"}
    multipliers = {"backbone": 0.1, "classifier": 10.0}
    together, _ = run(options(**common, learning_rate_multipliers=multipliers), params, gradients, 9)
    for part, factor in {"backbone": 0.1, "aspp": 1.0, "classifier": 10.0}.items():
        scaled = options(**common, learning_rate=0.1 * factor)
        alone, _ = run(scaled, {part: params[part]}, [{part: gradient[part]} for gradient in gradients], 9)
        # optax holds the rate's constants in float32
        assert_trees_close(together[part], alone[part], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", ["classic", "keras"])
def test_the_bias_multiplier_scales_the_rate_of_biases_beside_a_kernel(float64, rule):
    params = network(np.float64)
    params["classifier"] = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}  # as in research/deeplab: no norm
    gradients = gradients_like(params, 3)
    common = {"schedule": "poly", "momentum_rule": rule, "learning_rate_multipliers": {"classifier": 10.0}}
    plain, _ = run(options(**common), params, gradients, 9)
    doubled, _ = run(options(**common, bias_multiplier=2.0), params, gradients, 9)
    fast, _ = run(options(**common, learning_rate=0.2), params, gradients, 9)
    expected = plain | {"classifier": plain["classifier"] | {"bias": fast["classifier"]["bias"]}}
    # optax holds the rate's constants in float32
    assert_trees_close(doubled, expected, rtol=1e-6, atol=1e-7)


def test_a_bias_whose_kernel_is_frozen_still_has_its_multiplier():
    params = {"classifier": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    gradient = jax.tree.map(jnp.ones_like, params)
    result, _ = run(options(frozen=("classifier/kernel",), bias_multiplier=2.0), params, [gradient])
    np.testing.assert_array_equal(result["classifier"]["kernel"], 1)
    np.testing.assert_allclose(result["classifier"]["bias"], 0.8, rtol=1e-6)  # float32


@pytest.mark.parametrize("decay_rule", ["coupled_kernels", "decoupled_all", "decoupled_kernels"])
def test_frozen_parts_do_not_change_and_have_no_optimizer_state(decay_rule):
    params = network()
    gradients = gradients_like(params, 2)
    common = {"weight_decay": 0.1, "weight_decay_rule": decay_rule, "clip": "global", "clip_norm": 1.0}
    result, state = run(options(**common, frozen=("backbone",)), params, gradients)
    jax.tree.map(np.testing.assert_array_equal, result["backbone"], params["backbone"])
    assert len(buffers(state)) == len(jax.tree.leaves(params)) - len(jax.tree.leaves(params["backbone"]))

    def others(tree):
        return {part: leaves for part, leaves in tree.items() if part != "backbone"}

    # The others learn as if the frozen part and its share of the global norm were not there.
    expected, _ = run(options(**common), others(params), [others(gradient) for gradient in gradients])
    assert_trees_close(others(result), expected, rtol=1e-6, atol=1e-7)  # float32 sums in two programs


def test_modules_are_frozen_by_their_paths():
    params = network()
    result, _ = run(options(frozen=("backbone/conv", "[ad]*/n*m/scale")), params, gradients_like(params, 1))
    same = jax.tree.map(lambda one, other: bool(np.all(one == other)), result, params)
    learns = {"conv": {"kernel": False}, "norm": {"scale": False, "bias": False}}
    scale_stays = {"conv": {"kernel": False}, "norm": {"scale": True, "bias": False}}
    assert same == {
        "backbone": {"conv": {"kernel": True}, "norm": {"scale": False, "bias": False}},
        "aspp": scale_stays,
        "decoder": scale_stays,
        "classifier": learns,
    }


def test_a_pattern_that_matches_no_parameter_is_refused():
    with pytest.raises(UserError, match=r"^optimizer.frozen='backbone/cnv' matches no parameter.*backbone/conv"):
        run(options(frozen=("backbone/cnv",)), network(), [])


def test_every_step_has_the_rate_of_its_count():
    params = network()
    rule, _ = make(options(schedule="poly", momentum=0.0), 2, parts=models.PARTS)
    gradient = jax.tree.map(jnp.ones_like, params)
    first, state = rule.update(gradient, rule.init(params), params)
    second, _ = rule.update(gradient, state, params)
    np.testing.assert_allclose(first["aspp"]["norm"]["bias"], -0.1, rtol=1e-6)  # float32
    np.testing.assert_allclose(second["aspp"]["norm"]["bias"], -0.1 * 0.5**0.9, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "cosin"}, r"optimizer\.schedule='cosin' does not exist.*cosine"),
        ({"momentum_rule": "kears"}, r"optimizer\.momentum_rule='kears' does not exist.*keras"),
        ({"name": "adm"}, r"optimizer\.name='adm' does not exist.*adam"),
        ({"name": "adam", "momentum_rule": "keras"}, r"optimizer\.momentum_rule='keras' is for sgd"),
        ({"clip": "globl", "clip_norm": 1.0}, r"optimizer\.clip='globl' does not exist.*global"),
        ({"clip": "global"}, r"optimizer\.clip='global' needs optimizer\.clip_norm above 0"),
        ({"clip": "per_variable", "clip_norm": -1.0}, r"optimizer\.clip_norm=-1\.0 must be a number above 0"),
        ({"weight_decay_rule": "coupled"}, r"optimizer\.weight_decay_rule='coupled' does not exist"),
        ({"frozen": ("backbon",)}, r"optimizer\.frozen names 'backbon', which is not a part of the network.*backbone"),
        (
            {"learning_rate_multipliers": {"as*": 1.0}},
            r"learning_rate_multipliers names 'as\*', which is not a part of the network",
        ),
        (
            {"learning_rate_multipliers": {"asp": 1.0}},
            r"learning_rate_multipliers names 'asp', which is not a part of the network.*aspp",
        ),
    ],
)
def test_a_wrong_option_is_named_in_one_line(fields, message):
    with pytest.raises(UserError, match=message) as raised:
        make(options(**fields), 10, parts=models.PARTS)
    assert "\n" not in str(raised.value)


def test_a_warmup_as_long_as_the_training_is_refused():
    with pytest.raises(UserError, match=r"^the warm-up \(10 steps\) must be shorter than the training \(10 steps\)"):
        make_schedule(options(), 10, 10)
