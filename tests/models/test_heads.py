"""The heads and decoders of the papers' tables: cascaded blocks, ASPP's variants, decoders of several features."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import ops
from deeplab_jax.errors import UserError
from deeplab_jax.models import BACKBONES, BackboneSpec, abstract_variables, build_model
from deeplab_jax.models.aspp import ASPP
from deeplab_jax.models.atrous import plan_stages
from deeplab_jax.models.decoder import Decoder
from deeplab_jax.models.layers import Layers
from tests.models.support import (
    CLASSES,
    SMALL,
    count,
    evaluate,
    random_images,
    random_values,
    random_variables,
    small_model_config,
)

pytestmark = pytest.mark.usefixtures("small_backbones")


class Subsampling(nn.Module):
    """A backbone of a user's own, without features at stride 8."""

    layers: Layers
    output_stride: int
    spread_converted: bool

    def __call__(self, x):
        return {"low_level_features": x[:, ::4, ::4], "features": x[:, ::16, ::16]}


@pytest.fixture(autouse=True)
def subsampling(monkeypatch):
    monkeypatch.setitem(BACKBONES, "subsampling", BackboneSpec(Subsampling))


def layers64():
    return Layers(
        padding="symmetric",
        kernel_init="he_normal",
        norm_epsilon=1e-5,
        norm_decay=0.9,
        use_running_average=True,
        dtype=jnp.float64,
        ops=ops.XLA,
    )


def random64(module, *inputs):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), random_values(shapes))


def shapes_of(**fields):
    """Shapes of the parameters of a network on the narrow ResNet, and of its endpoints at 64x96 pixels."""
    model = build_model(small_model_config(**fields), CLASSES)
    image = jax.ShapeDtypeStruct((1, 64, 96, 3), np.uint8)
    variables = abstract_variables(model)
    _, endpoints = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, image)
    return variables["params"], {name: endpoint.shape for name, endpoint in endpoints.items()}


# ---- Cascaded modules (DeepLabv3, section 3.2) ----


@pytest.mark.parametrize(("cascade_blocks", "growth"), [(1, 1), (3, 3)])
def test_each_copy_of_resnet50s_last_block_has_the_parameters_of_three_identity_units(cascade_blocks, growth):
    fields = {"aspp": "none", "decoder": "none", "multi_grid": (1, 2, 1)}
    plain, _ = shapes_of(backbone="resnet50_v1_beta", **fields)
    cascaded, _ = shapes_of(backbone="resnet50_v1_beta", cascade_blocks=cascade_blocks, **fields)
    # 1x1 from 2048 to 512 channels, 3x3, 1x1 back to 2048, and scales and biases after each.
    unit = 2048 * 512 + 9 * 512 * 512 + 512 * 2048 + 2 * (512 + 512 + 2048)
    assert count(cascaded) - count(plain) == growth * 3 * unit
    assert cascaded["classifier"]["kernel"].shape == (1, 1, 2048, CLASSES)


def test_the_classifier_takes_the_features_of_the_last_copy():
    params, endpoints = shapes_of(
        backbone="small_resnet50_v1_beta", cascade_blocks=3, output_stride=8, aspp="none", decoder="none"
    )
    assert set(params) == {"backbone", "classifier"}
    assert endpoints["features"] == endpoints["stage7"] == (1, 8, 12, 128)
    assert endpoints["logits"] == (1, 8, 12, CLASSES)
    assert "aspp" not in endpoints


@pytest.mark.parametrize("output_stride", [64, 128, 256])
def test_copies_reach_output_strides_of_up_to_256(output_stride):
    _, endpoints = shapes_of(cascade_blocks=3, output_stride=output_stride, aspp="none", decoder="none")
    assert endpoints["features"][1:3] == (-(-64 // output_stride), -(-96 // output_stride))


def test_rates_of_cascaded_blocks_double_and_repeat_the_multi_grid():
    """DeepLabv3, figure 3b: at stride 16, blocks 4 to 7 have the rates 2, 4, 8 and 16."""

    def plan(output_stride, multi_grid=()):
        def is_strided(stage, block):  # the last unit of every block but the last, as in research/deeplab
            return stage < 6 and block == 2

        units = plan_stages(
            (3, 3, 3, 3), is_strided, output_stride, stem_stride=4, multi_grid=multi_grid, cascade_blocks=3
        )
        return [[unit.rate for stage, _, unit in units if stage == wanted] for wanted in range(2, 7)]

    assert plan(16) == [[1, 1, 1], [2, 2, 2], [4, 4, 4], [8, 8, 8], [16, 16, 16]]
    assert plan(16, (1, 2, 1)) == [[1, 1, 1], [2, 4, 2], [4, 8, 4], [8, 16, 8], [16, 32, 16]]
    assert plan(256, (1, 2, 1)) == [[1, 1, 1]] + [[1, 2, 1]] * 4


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet50_v1_beta",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet10_v1_slim", "resnet50_v2", "resnet50_v2_kerascv")
        ),
    ],
)
def test_atrous_features_of_cascaded_blocks_subsampled_are_the_strided_features(backbone):
    with jax.enable_x64(True):
        strides = (16, 64)
        modules = [
            SMALL[backbone].create(
                layers=layers64(), output_stride=stride, cascade_blocks=1, spread_converted=False, name="backbone"
            )
            for stride in strides
        ]
        x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 70, 130, 3)))
        variables = random64(modules[0], x)
        dense, strided = jax.jit(lambda v, x: [module.apply(v, x)["features"] for module in modules])(variables, x)
        assert strided.shape[1:3] == (2, 3)
        # float64 over some twenty layers.
        np.testing.assert_allclose(dense[:, ::4, ::4], strided, rtol=1e-9, atol=1e-9)


# ---- ASPP ----


@pytest.mark.parametrize("decoder", ["paper", "separable", "kerascv", "torchvision", "smp"])
def test_without_aspp_the_decoder_takes_the_features(decoder):
    params, endpoints = shapes_of(backbone="small_resnet10_v1_slim", aspp="none", decoder=decoder)
    assert set(params) == {"backbone", "decoder", "classifier"}
    # Strides 4 and 16: the first convolution of every style but smp's sees the 64 features of the backbone.
    first = params["decoder"]
    joined = 64 + 8
    channels = {
        "paper": lambda: first["refine1"]["conv"]["kernel"].shape == (3, 3, joined, 16),
        "separable": lambda: first["refine1"]["depthwise_conv"]["kernel"].shape == (3, 3, 1, joined),
        "kerascv": lambda: first["refine1_conv"]["kernel"].shape == (1, 1, joined, 16),
        "torchvision": lambda: first["refine1"]["conv"]["kernel"].shape == (3, 3, 64, 16),
        "smp": lambda: first["encoder_refine"]["depthwise_conv"]["kernel"].shape == (3, 3, 1, 64),
    }
    assert channels[decoder]()
    assert endpoints["logits"][1:3] == ((4, 6) if decoder == "torchvision" else (16, 24))


def test_a_3x3_projection_convolves_the_concatenated_branches_with_zeros_outside():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 9, 5)))
        module = ASPP(
            layers=layers64(),
            channels=6,
            projection_size=3,
            rates=(2, 3),
            separable=False,
            separable_norm=True,
            image_pooling=True,
            pooling_window=(),
            pooling_stride=(1, 1),
            output_stride=16,
            resize=lambda x, size: x,
            dropout=0.0,
            deterministic=True,
        )
        variables = random64(module, x)
        _, state = jax.jit(lambda v, x: module.apply(v, x, capture_intermediates=True, mutable=["intermediates"]))(
            variables, x
        )
        outputs = {
            name: np.asarray(calls["__call__"][0]) for name, calls in state["intermediates"].items() if name[0] != "_"
        }
        names = ("branch_1x1", "branch_atrous1", "branch_atrous2", "branch_pooling")
        joined = np.concatenate([np.broadcast_to(outputs[name], (2, 7, 9, 6)) for name in names], axis=-1)
        joined = np.pad(joined, ((0, 0), (1, 1), (1, 1), (0, 0)))
        kernel = np.asarray(variables["params"]["projection"]["kernel"])
        wanted = sum(
            joined[:, row : row + 7, column : column + 9] @ kernel[row, column]
            for row in range(3)
            for column in range(3)
        )
        np.testing.assert_allclose(outputs["projection"], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("align_corners", [False, True])
def test_windows_of_image_pooling_are_projected_before_they_are_enlarged(align_corners):
    config = small_model_config(
        "subsampling",
        decoder="none",
        atrous_rates=(),
        image_pooling_window=(64, 48),
        image_pooling_stride=(1, 2),
        align_corners=align_corners,
    )
    with jax.enable_x64(True):
        model = build_model(config, CLASSES, compute_dtype="float64")
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), random_variables(model))
        images = random_images(1, 128, 160, 3)

        @jax.jit
        def run(variables, images):
            orders = model, model.clone(published_order=True), model.clone(image_pooling_window=())
            return [order.apply(variables, images, train=False)[0] for order in orders]

        logits, published, whole = run(variables, images)
        np.testing.assert_allclose(logits, published, rtol=1e-9, atol=1e-9)  # float64, sums in another order
        assert np.abs(logits - whole).max() > 1e-3


# ---- Decoders (DeepLabv3+, table 2) ----


@pytest.mark.parametrize("convs", [1, 2, 3])
@pytest.mark.parametrize("style", ["paper", "separable"])
def test_the_number_of_convolutions_after_the_join(style, convs):
    params, _ = shapes_of(decoder=style, decoder_convs=convs, decoder_channels=16, low_level_channels=8)
    first, later = (9 * 24 * 16, 9 * 16 * 16) if style == "paper" else (9 * 24 + 48 + 24 * 16, 9 * 16 + 32 + 16 * 16)
    low_level = count(params["decoder"]["low_level"])
    assert count(params["decoder"]) - low_level == first + (convs - 1) * later + convs * 2 * 16


def decoder(**fields):
    return Decoder(
        layers=layers64(),
        style="paper",
        channels=6,
        low_level_channels=3,
        separable_norm=True,
        resize=lambda x, size: jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear"),
        **fields,
    )


def test_two_low_level_features_join_one_after_the_other():
    """DeepLabv3+, section 4.1: concatenated with Conv3 first and then Conv2, each time refined."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, mid, low = (jnp.asarray(rng.standard_normal(shape)) for shape in ((2, 3, 4, 5), (2, 5, 7, 4), (2, 9, 13, 2)))
        both = decoder(convs=1)
        variables = random64(both, x, [mid, low])
        assert set(variables["params"]) == {"mid_level", "mid_refine1", "low_level", "refine1"}

        def part(names):
            return {
                collection: {names[name]: values for name, values in tree.items() if name in names}
                for collection, tree in variables.items()
            }

        first = part({"mid_level": "low_level", "mid_refine1": "refine1"})
        second = part({"low_level": "low_level", "refine1": "refine1"})
        one = decoder(convs=1)
        wanted = one.apply(second, one.apply(first, x, [mid]), [low])
        assert wanted.shape == (2, 9, 13, 6)
        np.testing.assert_allclose(both.apply(variables, x, [mid, low]), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("output_stride", [8, 32])
def test_every_backbone_has_features_at_stride_8(backbone, output_stride):
    _, endpoints = shapes_of(
        backbone=f"small_{backbone}",
        low_level_strides=(4, 8),
        output_stride=output_stride,
        atrous_rates=(2,),
    )
    assert endpoints["low_level_features"][1:3] == (16, 24)
    assert endpoints["mid_level_features"][1:3] == (8, 12)
    assert endpoints["decoder"] == (1, 16, 24, 16)


def test_the_mid_level_features_of_research_deeplab_are_a_residual_branch():
    """`block2/unit_3/bottleneck_v1/conv3` of ResNet-50 has negative values; the sums after a ReLU do not."""
    model = build_model(small_model_config("small_resnet50_v1_beta", low_level_strides=(4, 8)), CLASSES)
    _, endpoints = evaluate(model, random_variables(model), random_images(1, 64, 64, 3))
    assert np.min(endpoints["mid_level_features"]) < 0 <= np.min(endpoints["stage2"])


def test_a_backbone_without_mid_level_features_is_refused_in_one_line():
    model = build_model(small_model_config("subsampling", low_level_strides=(4, 8)), CLASSES)
    with pytest.raises(UserError, match="subsampling has no mid_level_features; use \\(4,\\)") as caught:
        abstract_variables(model)
    assert "\n" not in str(caught.value)


def test_an_auxiliary_head_on_an_endpoint_that_does_not_exist_is_refused_in_one_line():
    model = build_model(small_model_config(auxiliary_channels=4, auxiliary_features="stage5"), CLASSES)
    with pytest.raises(UserError, match="'stage5' is not an endpoint of resnet10_v1_slim; did you mean stage"):
        abstract_variables(model)
