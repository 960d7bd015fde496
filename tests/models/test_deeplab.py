"""The whole network: parameters, orders of computation, sizes, output strides, dtypes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.config import base_config, load_config
from deeplab_jax.errors import UserError
from deeplab_jax.models import BACKBONES, abstract_variables, build_model
from deeplab_jax.models.atrous import plan_units
from deeplab_jax.models.backbones.inverted_residual import scaled_features

CLASSES = 5


def small_model_config(backbone="resnet10_v1_slim", **fields):
    model = base_config().model
    model.backbone = backbone
    model.aspp_channels = model.decoder_channels = 16
    model.low_level_channels = 8
    for name, value in fields.items():
        model[name] = value
    return model


def random_variables(model, seed=0, size=32):
    """Variables with random batch statistics too, so that a skipped normalization shows."""
    init = jax.jit(lambda: model.init(jax.random.key(seed), jnp.zeros((1, size, size, 3), jnp.uint8), train=False))
    variables = init()
    rng = np.random.default_rng(seed)

    def randomize(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        if name in ("mean", "bias"):
            return jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype)
        return leaf

    return jax.tree_util.tree_map_with_path(randomize, variables)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def evaluate(model, variables, images):
    """Logits and endpoints, compiled: op by op takes far longer."""
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)


def train(model, variables, images, **rngs):
    """Logits and the updated batch statistics of training mode."""
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs=rngs))
    (logits, endpoints), updates = apply(variables, images)
    return logits, endpoints, updates["batch_stats"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


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


@pytest.mark.parametrize(
    ("backbone", "parameters"),
    # torchvision's counts without its fully connected layer.
    [
        ("resnet18_v1", 11_176_512),
        ("resnet34_v1", 21_284_672),
        ("resnet50_v1", 23_508_032),
        ("resnet101_v1", 42_500_160),
        ("resnet152_v1", 58_143_808),
        ("mobilenet_v2_full", 2_223_872),
        # efficientnet-lite-pytorch's 4,652,008, 5,416,680 and 6,092,072 without the last two layers.
        ("efficientnet_lite0", 2_958_848),
        ("efficientnet_lite1", 3_723_520),
        ("efficientnet_lite2", 4_357_952),
    ],
)
def test_backbones_have_the_originals_parameters(backbone, parameters):
    model = build_model(small_model_config(backbone), CLASSES)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    variables = jax.eval_shape(lambda image: model.init(jax.random.key(0), image, train=False), image)
    assert count(variables["params"]["backbone"]) == parameters


@pytest.mark.parametrize("decoder", ["paper", "separable", "kerascv", "torchvision", "smp", "none"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_projecting_before_enlarging_equals_the_published_order(decoder, align_corners):
    with jax.enable_x64(True):
        config = small_model_config(decoder=decoder, align_corners=align_corners)
        model = build_model(config, CLASSES, compute_dtype="float64")
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), random_variables(model))
        images = random_images(2, 65, 97, 3)
        logits, _ = evaluate(model, variables, images)
        published, _ = evaluate(model.clone(published_order=True), variables, images)
        assert logits.shape == (2, 65, 97, CLASSES)
        # float64: what is left is the rounding of sums in another order.
        np.testing.assert_allclose(logits, published, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet10_v1_slim",
        "resnet50_v1_beta",
        "resnet50_v2",
        "resnet50_v2_kerascv",
        "mobilenet_v2",
        "efficientnet_lite0",
    ],
)
@pytest.mark.parametrize("padding", ["symmetric", "same_upper"])
def test_atrous_features_subsampled_are_the_strided_features(backbone, padding):
    """DeepLabv3, section 3.1: converting strides to rates computes the same features on a denser grid."""
    with jax.enable_x64(True):
        # SAME padding centers strided windows only at sizes of 32k + 1, symmetric padding at any.
        size = 97 if padding == "same_upper" else 90
        images = random_images(1, size, size, 3)
        features = {}
        for output_stride in (8, 16, 32):
            config = small_model_config(backbone, padding=padding, output_stride=output_stride)
            config.atrous_rates, config.atrous_rates_stride = (4,), output_stride
            model = build_model(config, CLASSES, compute_dtype="float64")
            if not features:
                variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), random_variables(model))
            _, endpoints = evaluate(model, variables, images)
            features[output_stride] = endpoints["features"]
        assert features[8].shape[1:3] == (-(-size // 8),) * 2
        for output_stride in (8, 16):
            step = 32 // output_stride
            dense = features[output_stride][:, ::step, ::step]
            np.testing.assert_allclose(dense, features[32], rtol=1e-9, atol=1e-9)


def test_rates_are_stated_for_stride_16_and_scaled():
    config = small_model_config(output_stride=8, atrous_rates=(2, 4))
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
    model = build_model(small_model_config(), CLASSES)
    variables = random_variables(model)
    images = random_images(1, *size, 3)
    logits, endpoints, updates = train(model, variables, images)
    assert logits.shape == (1, *size, CLASSES)
    assert endpoints["features"].shape[1:3] == tuple(-(-extent // 16) for extent in size)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, updates)))


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    model = build_model(small_model_config(), CLASSES)
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
    model = build_model(small_model_config(freeze_norm_statistics=True), CLASSES)
    variables = random_variables(model)
    images = random_images(2, 32, 32, 3)
    trained, _, updates = train(model, variables, images)
    evaluated, _ = evaluate(model, variables, images)
    np.testing.assert_array_equal(trained, evaluated)
    jax.tree.map(np.testing.assert_array_equal, updates, variables["batch_stats"])


@pytest.mark.parametrize(
    ("backbone", "formulation", "count"),
    [
        ("resnet18_v1", "auto", 3),  # of 8 sums: one in each stage of two units, but the first
        ("mobilenet_v2", "auto", 10),  # of 10
        ("mobilenet_v2", "plain", 0),
    ],
)
def test_so_many_residual_sums_are_stored_on_processors(backbone, formulation, count):
    model = build_model(small_model_config(backbone), CLASSES, formulation=formulation)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8), train=False))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    lowered = jax.jit(lambda variables, images: model.apply(variables, images, train=False)).lower(variables, images)
    # nothing but `ops.stored` has absolute values of images
    assert len(re.findall(r"stablehlo\.abs \S+ : tensor<(\d+x){4}f32>", lowered.as_text())) == count


@pytest.mark.parametrize(
    ("backbone", "decoder", "dropout"),
    [
        ("resnet10_v1_slim", "paper", 0.5),
        ("mobilenet_v2", "smp", 0.0),
    ],
)
def test_computing_activations_again_changes_nothing_but_what_is_kept(backbone, decoder, dropout):
    """Statistics are updated once, dropout draws the same again, and fewer activations wait for the gradient."""
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
    model = build_model(small_model_config(aspp_dropout=0.5), CLASSES)
    variables = random_variables(model)
    images = random_images(1, 32, 32, 3)

    def run(seed):
        return train(model, variables, images, dropout=jax.random.key(seed))[0]

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 0


def test_uint8_and_float_images_are_the_same():
    model = build_model(small_model_config(), CLASSES)
    variables = random_variables(model)
    images = random_images(1, 32, 32, 3)
    from_bytes, _ = evaluate(model, variables, images)
    from_floats, _ = evaluate(model, variables, images.astype(np.float32))
    np.testing.assert_array_equal(from_bytes, from_floats)


def test_every_backbone_offers_low_level_features_at_stride_4():
    for backbone in BACKBONES:
        model = build_model(small_model_config(backbone), CLASSES)
        image = jax.ShapeDtypeStruct((1, 64, 96, 3), np.uint8)
        (_, endpoints), _ = jax.eval_shape(
            lambda x, m=model: m.init_with_output(jax.random.key(0), x, train=False), image
        )
        assert endpoints["low_level_features"].shape[1:3] == (16, 24), backbone
        assert endpoints["features"].shape[1:3] == (4, 6), backbone


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet50_v3"}, "did you mean resnet50_v"),
        ({"output_stride": 12}, "output_stride is 12"),
        ({"decoder": "papre"}, "did you mean paper"),
        ({"width_multiplier": 0.5}, "model.width_multiplier is set, but resnet10_v1_slim does not take it"),
        ({"backbone": "mobilenet_v2", "multi_grid": (1, 2)}, "model.multi_grid is set, but mobilenet_v2"),
        ({"multi_grid": (1, 2)}, "last stage of resnet10_v1_slim has 1 units"),
        ({"atrous_rates": (1,), "output_stride": 32}, "not whole at stride 32"),
        ({"in_channels": 4}, "input_mean has 3 values"),
    ],
)
def test_a_network_that_cannot_be_built_is_one_clear_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        build_model(small_model_config(**fields), CLASSES)
    assert "\n" not in str(error.value)


def test_multi_grid_spreads_the_units_of_the_last_stage():
    """DeepLabv3, section 3.2.1: at stride 16 the rates of the three units are 2 * (1, 2, 4)."""
    config = small_model_config("resnet50_v1_beta", multi_grid=(1, 2, 4), atrous_rates=(5,))
    model = build_model(config, CLASSES)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    traced = str(jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0])(variables, image))
    assert [traced.count(f"rhs_dilation=({rate}, {rate})") for rate in (2, 4, 5, 8)] == [1, 1, 1, 1]


@pytest.mark.parametrize(("spread", "rates"), [(False, (1, 2, 2, 2)), (True, (2, 2, 2, 2))])
def test_a_converted_unit_runs_at_the_rate_before_or_behind_it(spread, rates):
    plan = plan_units([1, 2, 1, 1, 1], 4, stem_stride=4, spread_converted=spread)
    assert [unit.rate for unit in plan] == [1, *rates]
    assert {unit.stride for unit in plan} == {1}


@pytest.mark.parametrize(
    ("features", "multiplier", "scaled"), [(24, 0.5, 16), (32, 0.35, 16), (40, 1.1, 48), (16, 0.1, 8)]
)
def test_scaled_widths_are_multiples_of_eight_near_the_wanted_one(features, multiplier, scaled):
    assert scaled_features(features, multiplier) == scaled


@pytest.mark.parametrize(("backbone", "features"), [("mobilenet_v2", 12), ("mobilenet_v2_full", 16)])
def test_half_as_wide_mobilenets_round_as_their_originals(backbone, features):
    model = build_model(small_model_config(backbone, width_multiplier=0.5), CLASSES)
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), np.uint8)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)["params"]
    assert params["backbone"]["stage2_block1"]["project_conv"]["kernel"].shape[-1] == features


def test_shapes_of_a_network_given_lists_are_those_of_one_given_tuples():
    """A module that holds a list has no hash, by which what was traced before could be found."""
    model = build_model(small_model_config(), CLASSES)
    assert abstract_variables(model.clone(atrous_rates=[1, 2, 3])) == abstract_variables(model)
