"""Plain programs hold nothing that only CPUs need, and can be differentiated in both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from deeplab_jax import ops
from deeplab_jax.models import DeepLabV3Plus, abstract_variables, build_model
from deeplab_jax.parallel.jaxpr import equations
from tests.models.support import CLASSES, random_images, random_variables, small_model_config

CPU_ONLY = {"custom_vjp_call", "custom_vjp_call_jaxpr", "platform_index"}
NETWORKS = {
    "resnet v1": small_model_config("resnet10_v1_slim", aspp_separable=True, decoder="separable"),
    "resnet v2": small_model_config("resnet50_v2_kerascv", decoder="kerascv", align_corners=True),
    "mobilenet v2": small_model_config("mobilenet_v2", width_multiplier=0.25, decoder="smp", padding="same_upper"),
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


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("using", [ops.select("tpu"), ops.select("gpu", spatial=True)], ids=lambda using: using.name)
def test_programs_for_accelerators_are_plain_xla(config: ConfigDict, using):
    for remat in ("none", "activations"):
        model = build_model(config, CLASSES, ops=using, remat=remat, compute_dtype="bfloat16")
        found = primitives(model)
        assert "conv_general_dilated" in found
        assert not found & CPU_ONLY


def test_programs_for_cpus_are_not():
    assert "custom_vjp_call" in primitives(build_model(NETWORKS["resnet v1"], CLASSES, platform="cpu"))


def test_the_operations_keep_a_model_hashable_so_that_jit_finds_its_program():
    models = [build_model(small_model_config(), CLASSES, platform=platform) for platform in ("cpu", "cpu", "tpu")]
    assert models[0] == models[1]
    assert len({hash(model) for model in models}) == 2


def test_forward_mode_agrees_with_reverse_mode():
    """<v, J u> = <J^T v, u>, and the Hessian along two directions is that of reverse mode over reverse mode."""
    with jax.enable_x64(True):
        model = build_model(small_model_config(aspp_separable=True), CLASSES, compute_dtype="float64")
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), random_variables(model))
        params, statistics = variables["params"], variables["batch_stats"]
        images = random_images(2, 16, 16, 3)
        rng = np.random.default_rng(0)
        directions = [jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape), params) for _ in range(2)]

        def loss(params):
            return mean_square(model, params, statistics, images)[0]

        def along(steps):
            moved = jax.tree.map(
                lambda leaf, *ways: leaf + sum(s * w for s, w in zip(steps, ways, strict=True)), params, *directions
            )
            return loss(moved)

        @jax.jit
        def derivatives():
            _, forward = jax.jvp(loss, (params,), (directions[0],))
            zero = jnp.zeros(2)
            return forward, jax.grad(along)(zero), jax.hessian(along)(zero), jax.jacrev(jax.grad(along))(zero)

        forward, reverse, hessian, twice_reverse = derivatives()
        np.testing.assert_allclose(forward, reverse[0], rtol=1e-9)
        np.testing.assert_allclose(hessian, twice_reverse, rtol=1e-7)
        assert np.abs(hessian).max() > 0
