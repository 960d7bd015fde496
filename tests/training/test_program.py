"""The program of a config: how its step is compiled on CPU."""

import time

import jax

from deeplab_jax.config import base_config
from deeplab_jax.parallel import mesh as mesh_lib
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


def _tiny_program() -> TrainProgram:
    config = base_config()
    config.model.backbone = "resnet10_v1_slim"
    config.model.atrous_rates = (1, 2)
    config.model.aspp_channels = config.model.decoder_channels = config.model.low_level_channels = 8
    config.data.batch_size, config.data.image_size = 2, (64, 64)
    config.optimizer.learning_rate = 0.1
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    return build_program(config, 21, mesh, total_steps=4, warmup_steps=0)
