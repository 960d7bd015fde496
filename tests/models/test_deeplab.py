"""The whole network: orders of computation, sizes, dtypes, rematerialization, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import ops
from deeplab_jax.config import load_config
from deeplab_jax.errors import UserError
from deeplab_jax.models import abstract_variables, build_model
from tests.models.support import CLASSES, count, evaluate, random_images, random_variables, small_model_config, train

pytestmark = pytest.mark.usefixtures("small_backbones")


def test_the_guides_model_has_its_published_parameters():
    config = load_config("kerascv_guide")
    model = build_model(config.model, 21)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    variables = jax.eval_shape(lambda image: model.init(jax.random.key(0), image, train=False), image)
    parts = {
        part: count(variables["params"][part]) + count(variables["batch_stats"].get(part, {}))
        for part in variables["params"]
    }
    assert parts == {"backbone": 23_556_608, "aspp": 15_538_176, "decoder": 12_480 + 78_848, "classifier": 5_376}
    assert count(variables["params"]) == 39_146_464


@pytest.mark.parametrize("decoder", ["paper", "separable", "kerascv", "torchvision", "smp", "none"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_projecting_before_enlarging_equals_the_published_order(decoder, align_corners):
    with jax.enable_x64(True):
        config = small_model_config("tiny", decoder=decoder, align_corners=align_corners)
        model = build_model(config, CLASSES, compute_dtype="float64")
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), random_variables(model))
        images = random_images(2, 33, 49, 3)

        @jax.jit
        def run(variables, images):
            orders = model, model.clone(published_order=True)
            return [model.apply(variables, images, train=False)[0] for model in orders]

        logits, published = run(variables, images)
        assert logits.shape == (2, 33, 49, CLASSES)
        # float64: what is left is the rounding of sums in another order.
        np.testing.assert_allclose(logits, published, rtol=1e-9, atol=1e-9)


def test_rates_are_stated_for_stride_16_and_scaled():
    config = small_model_config("small_resnet10_v1_slim", output_stride=8, atrous_rates=(2, 4))
    dense = build_model(config, CLASSES)
    config.output_stride = 16
    kernel_positions = []
    for model in (dense, build_model(config, CLASSES)):
        jaxpr = jax.make_jaxpr(lambda x, model=model: model.init_with_output(jax.random.key(0), x, train=False)[0][0])(
            jnp.zeros((1, 64, 64, 3))
        )
        kernel_positions.append(str(jaxpr).count("rhs_dilation=(4, 4)"))
    # Stride 8 has the rates 4 and 8 (and the backbone's own 2 and 4), stride 16 has 2 and 4.
    assert kernel_positions[0] >= 1
    assert kernel_positions[1] == 1


@pytest.mark.parametrize("size", [(8, 8), (33, 65), (50, 70), (1, 40)])
def test_any_size_works_with_a_batch_of_one(size):
    model = build_model(small_model_config("tiny"), CLASSES)
    variables = random_variables(model)
    images = random_images(1, *size, 3)
    logits, endpoints, updates = train(model, variables, images)
    assert logits.shape == (1, *size, CLASSES)
    assert endpoints["features"].shape[1:3] == tuple(-(-extent // 16) for extent in size)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, updates)))


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    model = build_model(small_model_config("tiny"), CLASSES)
    variables = random_variables(model)
    images = random_images(2, 64, 64, 3)
    coarse = model.clone(dtype=jnp.bfloat16)
    logits, endpoints, updates = train(coarse, variables, images)
    assert endpoints["features"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, updates))} == {jnp.dtype("float32")}
    exact, _ = evaluate(model, variables, images)
    rounded, _ = evaluate(coarse, variables, images)
    # bfloat16 has 8 bits: each of the two dozen layers rounds by up to 2^-9 relative to its largest values.
    assert np.abs(exact - rounded).max() <= 0.1 * np.abs(exact).max()
    assert np.abs(exact - rounded).max() > 0


def test_frozen_norm_statistics_stay_and_are_used_in_training():
    model = build_model(small_model_config("tiny", freeze_norm_statistics=True), CLASSES)
    variables = random_variables(model)
    images = random_images(2, 32, 32, 3)
    trained, _, updates = train(model, variables, images)
    evaluated, _ = evaluate(model, variables, images)
    np.testing.assert_array_equal(trained, evaluated)
    jax.tree.map(np.testing.assert_array_equal, updates, variables["batch_stats"])


@pytest.mark.parametrize(("backbone", "sums"), [("resnet18_v1", 8), ("mobilenet_v2", 10)])
def test_residual_sums_are_an_operation(backbone, sums):
    added = []
    adding = dataclasses.replace(ops.XLA, add=lambda x, y: added.append(x.shape) or x + y)
    model = build_model(small_model_config(backbone), CLASSES, ops=adding)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    jax.eval_shape(lambda v, x: model.apply(v, x, train=False), abstract_variables(model), images)
    assert len(added) == sums


@pytest.mark.parametrize(
    ("backbone", "decoder", "dropout"),
    [
        ("tiny", "paper", 0.5),
        pytest.param("small_mobilenet_v2", "smp", 0.0, marks=pytest.mark.slow),
        pytest.param("small_xception71", "separable", 0.0, marks=pytest.mark.slow),
    ],
)
def test_rematerialization_changes_only_what_is_kept(backbone, decoder, dropout):
    """Statistics are updated once, dropout draws the same values again, and fewer activations are kept."""
    config = small_model_config(backbone, decoder=decoder, aspp_separable=decoder == "smp", aspp_dropout=dropout)
    images = random_images(2, 32, 32, 3)
    with jax.enable_x64(True):
        variables = random_variables(build_model(config, CLASSES))
        variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables)
        results, kept = [], []
        for remat in ("none", "activations", "units"):
            model = build_model(config, CLASSES, compute_dtype="float64", remat=remat)

            def loss(params, model=model):
                (logits, _), updates = model.apply(
                    {"params": params, "batch_stats": variables["batch_stats"]},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.key(1)},
                )
                return jnp.mean(logits**2), updates["batch_stats"]

            results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
            residuals = jax.eval_shape(
                lambda params, loss=loss: jax.vjp(loss, params, has_aux=True)[1], variables["params"]
            )
            kept.append(sum(leaf.size for leaf in jax.tree.leaves(residuals)))
        # float64 over some sixty layers; the sums are the same, in another order at most.
        for other in results[1:]:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), results[0], other)
    everything, convolutions, inputs = (values - count(variables["params"]) for values in kept)
    assert inputs < convolutions < everything


def test_dropout_needs_and_uses_its_rng():
    model = build_model(small_model_config("tiny", aspp_dropout=0.5), CLASSES)
    variables = random_variables(model)
    images = random_images(1, 32, 32, 3)

    def run(seed):
        return train(model, variables, images, dropout=jax.random.key(seed))[0]

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 0


def test_uint8_and_float_images_are_the_same():
    model = build_model(small_model_config("tiny"), CLASSES)
    variables = random_variables(model)
    images = random_images(1, 32, 32, 3)
    from_bytes, _ = evaluate(model, variables, images)
    from_floats, _ = evaluate(model, variables, images.astype(np.float32))
    np.testing.assert_array_equal(from_bytes, from_floats)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet50_v3"}, "did you mean resnet50_v"),
        ({"output_stride": 12}, "output_stride=12 does not exist"),
        ({"decoder": "papre"}, "did you mean paper"),
        ({"width_multiplier": 0.5}, "model.width_multiplier is set, but resnet10_v1_slim does not take it"),
        ({"backbone": "mobilenet_v2", "multi_grid": (1, 2)}, "model.multi_grid is set, but mobilenet_v2"),
        ({"multi_grid": (1, 2)}, "multi_grid has 2 rates, but resnet10_v1_slim takes 1"),
        ({"atrous_rates": (1,), "output_stride": 32}, "not whole at stride 32"),
        ({"in_channels": 4}, "input_mean has 3 values"),
        ({"cascade_blocks": 1, "multi_grid": (1, 2)}, "multi_grid has 2 rates, but resnet10_v1_slim takes 1"),
        ({"backbone": "mobilenet_v2", "cascade_blocks": 1}, "model.cascade_blocks is set, but mobilenet_v2 does not"),
        ({"output_stride": 128, "cascade_blocks": 1, "aspp": "none"}, "cascade_blocks=1 the largest stride is 64"),
        ({"decoder": "kerascv", "decoder_convs": 1}, "decoder_convs is set, but the decoder kerascv does not take it"),
        ({"decoder": "none", "low_level_strides": (4, 8)}, "low_level_strides is set, but the decoder none does not"),
        ({"low_level_strides": (8,)}, "low_level_strides=\\(8,\\) does not exist"),
        ({"aspp_projection_size": 5}, "aspp_projection_size=5 does not exist"),
    ],
)
def test_a_wrong_field_is_one_clear_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        build_model(small_model_config(**fields), CLASSES)
    assert "\n" not in str(error.value)


def test_shapes_of_a_network_given_lists_are_those_of_one_given_tuples():
    """A module that holds a list is not hashable, so that JAX would not find the program it traced before."""
    model = build_model(small_model_config(), CLASSES)
    assert abstract_variables(model.clone(atrous_rates=[1, 2, 3])) == abstract_variables(model)
