"""Plain programs hold nothing that only CPUs need, and can be differentiated in both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import ops
from deeplab_jax.models import DeepLabV3Plus, abstract_variables, build_model
from deeplab_jax.parallel.jaxpr import equations
from tests.models.support import CLASSES, random_images, random_variables, small_model_config

CPU_ONLY = {"custom_vjp_call", "custom_vjp_call_jaxpr", "platform_index"}
pytestmark = pytest.mark.usefixtures("small_backbones")
NETWORKS = {
    "resnet v1": {"backbone": "small_resnet50_v1_beta", "aspp_separable": True, "decoder": "separable"},
    "resnet v2": {"backbone": "small_resnet50_v2_kerascv", "decoder": "kerascv", "align_corners": True},
    "xception": {"backbone": "small_xception71", "aspp": "dpc", "decoder": "separable"},
    "mobilenet v2": {"backbone": "small_mobilenet_v2", "decoder": "smp", "padding": "same_upper"},
}


def mean_square(model: DeepLabV3Plus, params, batch_stats, images):
    """A scalar of the logits of training mode, with the updated statistics."""
    variables = {"params": params, "batch_stats": batch_stats}
    (logits, _), updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
    return jnp.mean(logits**2), updates


def primitives(model: DeepLabV3Plus) -> set[str]:
    """Primitives of the forward pass and of a training gradient."""
    variables = abstract_variables(model)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.uint8)
    forward = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)

    def gradient(variables, images):
        loss = jax.value_and_grad(
            lambda params: mean_square(model, params, variables["batch_stats"], images), has_aux=True
        )
        return loss(variables["params"])

    backward = jax.make_jaxpr(gradient)(variables, images)
    return {eqn.primitive.name for program in (forward, backward) for _, eqn in equations(program.jaxpr)}


@pytest.mark.parametrize("fields", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("platform", ["tpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_programs_for_accelerators_are_plain_xla(fields, platform):
    config = small_model_config(**fields)
    model = build_model(config, CLASSES, platform=platform, remat="activations", compute_dtype="bfloat16")
    found = primitives(model)
    assert "conv_general_dilated" in found
    assert not found & CPU_ONLY


def test_programs_for_split_rows_are_plain_xla():
    using = ops.select("cpu", spatial=True)
    assert not primitives(build_model(small_model_config("tiny"), CLASSES, ops=using)) & CPU_ONLY


def test_programs_for_cpus_are_not():
    assert "custom_vjp_call" in primitives(build_model(small_model_config("tiny"), CLASSES, platform="cpu"))


def test_the_operations_keep_a_model_hashable_so_that_jit_finds_its_program():
    models = [build_model(small_model_config(), CLASSES, platform=platform) for platform in ("cpu", "cpu", "tpu")]
    assert models[0] == models[1]
    assert len({hash(model) for model in models}) == 2


def test_forward_mode_agrees_with_reverse_mode():
    """A directional derivative and the Hessian along two directions, against gradients and their differences."""
    with jax.enable_x64(True):
        model = build_model(small_model_config("tiny"), CLASSES, compute_dtype="float64")
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), random_variables(model))
        params, statistics = variables["params"], variables["batch_stats"]
        images = random_images(2, 16, 16, 3)
        rng = np.random.default_rng(0)
        directions = [jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape), params) for _ in range(2)]

        def along(steps):
            moved = jax.tree.map(lambda leaf, one, two: leaf + steps[0] * one + steps[1] * two, params, *directions)
            return mean_square(model, moved, statistics, images)[0]

        zero, step = jnp.zeros(2), 1e-8  # so small that no ReLU turns
        gradient = jax.jit(jax.grad(along))
        _, forward = jax.jit(lambda: jax.jvp(along, (zero,), (jnp.array([1.0, 0.0]),)))()
        np.testing.assert_allclose(forward, gradient(zero)[0], rtol=1e-9)
        hessian = jax.jit(jax.hessian(along))(zero)
        moves = step * np.eye(2)
        differences = np.stack([(gradient(move) - gradient(-move)) / (2 * step) for move in moves])
        np.testing.assert_allclose(hessian, differences, rtol=1e-5, atol=1e-5 * np.abs(hessian).max())
