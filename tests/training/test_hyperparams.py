"""The numbers of a config are inputs of the compiled step: one program for all of them, and the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from deeplab_jax import losses
from deeplab_jax.config import base_config
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.training import optimizer
from deeplab_jax.training import step as step_lib
from deeplab_jax.training.programs import Programs
from tests.support import toy_network

CLASSES, SIZE, BATCH, STEPS = 4, 24, 8, 10

POLY = {
    "schedule": "poly", "weight_decay": 1e-3, "bias_multiplier": 2.0, "warmup_learning_rate": 1e-3,
    "clip": "global", "clip_norm": 0.5,
}  # fmt: skip
KERAS = {
    "schedule": "cosine", "momentum_rule": "keras", "weight_decay": 0.01, "weight_decay_rule": "decoupled_all",
    "clip": "per_variable", "clip_norm": 0.1,
}  # fmt: skip
ADAM = {"name": "adam", "schedule": "step", "weight_decay": 0.05, "weight_decay_rule": "decoupled_kernels"}
PLAIN = {"schedule": "constant", "momentum": 0.0}

# For each, other values of all of its numbers.
OTHERS = {
    "poly": (
        POLY,
        {"learning_rate": 0.3, "momentum": 0.8, "poly_power": 2.0, "weight_decay": 0.1, "bias_multiplier": 3.0,
         "warmup_learning_rate": 0.0, "clip_norm": 2.0},
    ),
    "keras": (KERAS, {"learning_rate": 0.3, "momentum": 0.8, "weight_decay": 0.1, "clip_norm": 2.0}),
    "adam": (
        ADAM,
        {"learning_rate": 0.3, "momentum": 0.8, "milestones": (0.2, 0.9), "milestone_factor": 0.5, "weight_decay": 0.1},
    ),
    "plain": (PLAIN, {"learning_rate": 0.3}),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("toy_models")


def make_config(fields, *, ema_decay=0.9, backbone=0.5, auxiliary_weight=0.4, dtype="float32"):
    config = base_config()
    config.data.batch_size, config.data.image_size = BATCH, (SIZE, SIZE)
    with config.unlocked():
        config.optimizer.learning_rate_multipliers = ConfigDict({"backbone": backbone})
        config.train.compute_dtype = dtype
    config.optimizer.update({"learning_rate": 0.05} | fields)
    config.train.ema_decay = ema_decay
    config.loss.auxiliary_weight = auxiliary_weight
    return config


def build(config, total_steps=STEPS, warmup_steps=2):
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    return step_lib.build_program(config, CLASSES, mesh, total_steps=total_steps, warmup_steps=warmup_steps)


def batches(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        label = rng.integers(0, CLASSES, (BATCH, SIZE, SIZE), dtype=np.uint8)
        image = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
        yield jax.device_put({"image": image, "label": label})


def in_float64(state):
    wide = {np.dtype(np.float32): np.float64}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, wide.get(leaf.dtype, leaf.dtype)), state)


@pytest.mark.parametrize("name", OTHERS)
def test_configs_that_differ_in_numbers_have_one_program(name):
    fields, others = OTHERS[name]
    text = build(make_config(fields)).lower_step().as_text()
    changed = make_config(fields | others, ema_decay=0.5, backbone=0.1, auxiliary_weight=1.0)
    assert build(changed, total_steps=77, warmup_steps=5).lower_step().as_text() == text


@pytest.mark.parametrize(
    "change", [{"momentum": 0.0}, {"weight_decay": 0.0}, {"bias_multiplier": 1.0}, {"clip": "none"}]
)
def test_a_part_that_is_switched_off_is_not_in_the_program(change):
    def count_operations(fields):
        return build(make_config(fields)).lower_step().as_text().count("stablehlo.")

    assert count_operations(POLY | change) < count_operations(POLY)


@pytest.mark.parametrize("name", ["poly", "keras", "adam"])
def test_the_program_takes_the_steps_of_one_whose_numbers_are_constants(name, float64):
    fields, _ = OTHERS[name]
    config = make_config(fields, dtype="float64")
    program = build(config)
    rule, schedule = optimizer.make(config.optimizer, STEPS, 2, parts=toy_network.PARTS)
    constant = step_lib.make_train_step(
        program.model,
        rule,
        losses.make_loss(config.loss, num_classes=CLASSES),
        learning_rate=schedule,
        auxiliary_weight=0.4,
        ema_rate=1 - 0.9,
    )
    constant = jax.jit(constant)
    expected = in_float64(program.create(np.uint32(0)))
    actual = jax.tree.map(jnp.copy, expected)  # it is donated
    for batch in batches(5):
        expected, expected_report = constant(expected, batch)
        actual, report = program.step(actual, batch)
    # float64, five steps with their roundings
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12),
        jax.device_get((actual, report)),
        jax.device_get((expected, expected_report)),
    )


def test_steps_with_other_numbers_run_the_same_compiled_program():
    compilations = []

    def note(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(details.get("fun_name"))

    first = build(make_config(POLY))
    state = first.random_state(seed=0)
    (batch,) = batches(1)
    state, report = first.step(state, batch)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        for rate in (0.1, 0.2):
            program = build(make_config(POLY | {"learning_rate": rate})).with_functions_of(first)
            state, report = program.step(program.random_state(seed=3), batch)
            assert float(report["learning_rate"]) == np.float32(1e-3)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert compilations == []


def test_runs_share_a_program_only_if_it_is_the_same(caplog):
    """Fields of the loop do not change the step. Whatever changes the step makes another program."""
    caplog.set_level("INFO", logger="deeplab_jax")
    programs, mesh = Programs(), mesh_lib.make_mesh(base_config().mesh, jax.devices()[:1])

    def is_shared(config, classes=CLASSES, image_dtype="uint8"):
        program = programs.train_program(
            config, classes, mesh, image_dtype=image_dtype, total_steps=STEPS, warmup_steps=2
        )
        return program.take_step is first.take_step

    config = make_config(POLY)
    first = programs.train_program(config, CLASSES, mesh, image_dtype="uint8", total_steps=STEPS, warmup_steps=2)
    assert is_shared(make_config(POLY | {"learning_rate": 0.3}))
    other = make_config(POLY)
    other.data.update(data_dir="x", workers=3, train_split="a", eval_split="b", num_examples=7, unreadable="skip")
    other.train.update(duration="7 steps", patience=3, seed=5, init_from="x", precise_norm_batches=4)
    other.eval.update(every="1 steps", before_training=True)
    other.checkpoint.update(every="2 steps", keep=4, use="best")
    other.log.every_steps = 5
    assert build(other).lower_step().as_text() == build(config).lower_step().as_text()
    assert is_shared(other)
    assert not is_shared(make_config(POLY | {"momentum": 0.0}))
    assert not is_shared(make_config(POLY | {"schedule": "cosine"}))
    assert not is_shared(make_config(POLY | {"frozen": ("backbone",)}))
    assert not is_shared(make_config(POLY, ema_decay=None))
    assert not is_shared(make_config(POLY, backbone=1.0))
    assert not is_shared(config, classes=CLASSES + 1)
    assert not is_shared(config, image_dtype="uint16")
    smaller = make_config(POLY)
    smaller.data.batch_size = 4
    assert not is_shared(smaller)
    messages = [record.message for record in caplog.records]
    assert messages.count("This run reuses the train step that an earlier run has compiled") == 2


def test_runs_with_other_pseudo_labels_share_a_program():
    """The threshold, the weight and the name of the split are not part of the step; the teacher is."""
    programs, mesh = Programs(), mesh_lib.make_mesh(base_config().mesh, jax.devices()[:1])

    def step_of(**fields):
        config = make_config(POLY)
        config.unlabeled.update(fields)
        return programs.train_program(config, CLASSES, mesh, image_dtype="uint8", total_steps=STEPS).take_step

    first = step_of(split="a")
    assert step_of(split="b", threshold=0.5, weight=2.0) is first
    assert step_of(split="a", teacher="average") is not first
    assert step_of() is not first
