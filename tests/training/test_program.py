"""The program of a config: how its step is compiled on CPU."""

import time

import jax
import numpy as np
import pytest

from deeplab_jax import program_cache
from deeplab_jax.config import base_config
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.training import step as step_lib
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import TrainProgram, build_program


def test_the_state_and_the_step_are_compiled_one_after_the_other():
    """Each takes hundreds of MB; at the same time they would take the memory of both."""
    spans = []

    def note(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            now = time.perf_counter()
            spans.append((now - seconds, now))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        _tiny_program().random_state(seed=0)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert len(spans) == 2
    assert min(spans)[1] < max(spans)[0], spans


@pytest.mark.slow
def test_a_second_start_traces_nothing_and_computes_the_same_bits(tmp_path, monkeypatch):
    """The state, the step and the shapes come from the disk; a step from a saved state is the same, too."""

    def arrays(program, state):
        state, report = program.step(state, batch)
        return [np.asarray(leaf) for leaf in jax.tree.leaves((state, report))]

    def forbidden(*arguments, **options):
        raise AssertionError("it is traced")

    rng = np.random.default_rng(0)
    images, labels = (rng.integers(0, high, (2, 64, 64), dtype=np.uint8) for high in (256, 21))
    batch = jax.device_put({"image": np.stack([images] * 3, axis=-1), "label": labels})
    plain = _tiny_program()
    expected = arrays(plain, plain.random_state(seed=3))
    saved = jax.tree.map(np.asarray, plain.random_state(seed=3))
    monkeypatch.delenv(program_cache.SWITCH)
    program_cache.enable(tmp_path)
    try:
        for start in ("first", "second", "continued"):
            if start != "first":
                monkeypatch.setattr(step_lib, "make_train_step", forbidden)
                monkeypatch.setattr(step_lib, "jit_initializer", lambda *_: jax.jit(forbidden))
                monkeypatch.setattr(TrainState, "shapes", forbidden)
            program = _tiny_program()
            if start == "continued":
                state = jax.tree.map(jax.device_put, saved, program.shardings)
            else:
                state = program.random_state(seed=3)
            for found, wanted in zip(arrays(program, state), expected, strict=True):
                np.testing.assert_array_equal(found, wanted, err_msg=start)
        with pytest.raises(AssertionError, match="it is traced"):
            _tiny_program(backbone="resnet10_v1")  # another network
    finally:
        program_cache.disable()


def _tiny_program(backbone: str = "resnet10_v1_slim") -> TrainProgram:
    config = base_config()
    config.model.backbone = backbone
    config.model.atrous_rates = (1, 2)
    config.model.aspp_channels = config.model.decoder_channels = config.model.low_level_channels = 8
    config.data.batch_size, config.data.image_size = 2, (64, 64)
    config.optimizer.learning_rate = 0.1
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    return build_program(config, 21, mesh, total_steps=4, warmup_steps=0)
