"""Backbones: parameters, endpoints, atrous conversion, and the registry."""

import importlib
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import ops
from deeplab_jax.config import load_config
from deeplab_jax.errors import UserError
from deeplab_jax.models import BACKBONES, BackboneSpec, abstract_variables, build_model, register_backbone
from deeplab_jax.models.atrous import plan_units
from deeplab_jax.models.backbones.inverted_residual import scaled_features
from deeplab_jax.models.layers import DepthwiseConv, Layers
from tests.models.support import CLASSES, SMALL, count, random_images, random_values, small_model_config

# torchvision's counts without its fully connected layer, and efficientnet-lite-pytorch's 4,652,008, 5,416,680 and
# 6,092,072 without the last two layers; of Xception the counts of the original's layers, which timm 1.0.31 has too.
# torchvision's MobileNetV3 without its classifier, and research/deeplab's.
PARAMETERS = {
    "resnet18_v1": 11_176_512,
    "resnet34_v1": 21_284_672,
    "resnet50_v1": 23_508_032,
    "resnet101_v1": 42_500_160,
    "resnet152_v1": 58_143_808,
    "mobilenet_v2_full": 2_223_872,
    "mobilenet_v3_large": 2_971_952,
    "mobilenet_v3_small": 927_008,
    "mobilenet_v3_large_seg": 1_379_184,
    "mobilenet_v3_small_seg": 390_576,
    "efficientnet_lite0": 2_958_848,
    "efficientnet_lite1": 3_723_520,
    "efficientnet_lite2": 4_357_952,
    "xception41": 24_920_560,
    "xception65": 37_867_312,
    "xception71": 40_289_736,
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_have_the_parameters_of_the_originals_and_endpoints_at_their_strides(backbone):
    stride = 32 if BACKBONES[backbone].output_strides else 16
    model = build_model(small_model_config(backbone, output_stride=stride), CLASSES)
    image = jax.ShapeDtypeStruct((1, 64, 96, 3), np.uint8)
    (_, endpoints), variables = jax.eval_shape(
        lambda image: model.init_with_output(jax.random.key(0), image, train=False), image
    )
    parameters = count(variables["params"]["backbone"])
    assert parameters == PARAMETERS.get(backbone, parameters)
    assert endpoints["low_level_features"].shape[1:3] == (16, 24)
    assert endpoints["features"].shape[1:3] == (64 // stride, 96 // stride)


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("padding", ["symmetric", "same_upper"])
def test_atrous_features_subsampled_are_the_strided_features(backbone, padding):
    """DeepLabv3, section 3.1: converting strides to rates computes the same features on a denser grid."""
    with jax.enable_x64(True):
        # SAME padding centers strided windows only at sizes of 32k + 1, symmetric padding at any.
        size = 65 if padding == "same_upper" else 58
        layers = Layers(
            padding=padding,
            kernel_init="he_normal",
            norm_epsilon=1e-5,
            norm_decay=0.9,
            use_running_average=True,
            dtype=jnp.float64,
            ops=ops.XLA,
        )
        modules = {
            stride: SMALL[backbone].create(layers=layers, output_stride=stride, spread_converted=False, name="backbone")
            for stride in (8, 16, 32)
        }
        x = np.random.default_rng(0).standard_normal((1, size, size, 3))
        variables = random_values(jax.eval_shape(lambda: modules[32].init(jax.random.key(0), jnp.asarray(x))))
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)

        @jax.jit
        def run(variables, x):
            return {stride: module.apply(variables, x)["features"] for stride, module in modules.items()}

        features = run(variables, x)
        assert features[8].shape[1:3] == (-(-size // 8),) * 2
        for output_stride in (8, 16):
            step = 32 // output_stride
            dense = features[output_stride][:, ::step, ::step]
            np.testing.assert_allclose(dense, features[32], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backbone", ["resnet50_v1_beta", "small_xception71"])
@pytest.mark.usefixtures("small_backbones")
def test_multi_grid_spreads_the_units_of_the_last_stage(backbone):
    """DeepLabv3, section 3.2.1: at stride 16 the rates of the three units are 2 * (1, 2, 4). In Xception, they are the
    three convolutions of the last unit.
    """
    model = build_model(small_model_config(backbone, multi_grid=(1, 2, 4), atrous_rates=(5,)), CLASSES)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0])(abstract_variables(model), images)
    assert [str(program).count(f"rhs_dilation=({rate}, {rate})") for rate in (2, 4, 5, 8)] == [1, 1, 1, 1]


@pytest.mark.parametrize(("spread", "rates"), [(False, (1, 2, 2, 2)), (True, (2, 2, 2, 2))])
def test_a_converted_unit_runs_at_the_rate_before_or_after_it(spread, rates):
    plan = plan_units([1, 2, 1, 1, 1], 4, stem_stride=4, spread_converted=spread)
    assert [unit.rate for unit in plan] == [1, *rates]
    assert {unit.stride for unit in plan} == {1}


@pytest.mark.parametrize(
    ("output_stride", "plan"),
    [
        (32, {"entry_block5": (2, 1), "middle_block1_unit1": (1, 1), "exit_block1": (2, 1), "exit_block2": (1, 1)}),
        (16, {"entry_block5": (2, 1), "middle_block1_unit1": (1, 1), "exit_block1": (1, 1), "exit_block2": (1, 2)}),
        (8, {"entry_block5": (1, 1), "middle_block1_unit1": (1, 2), "exit_block1": (1, 2), "exit_block2": (1, 4)}),
    ],
)
@pytest.mark.usefixtures("small_backbones")
def test_strides_and_rates_of_xception_are_those_of_research_deeplab(output_stride, plan):
    """The rate lags: the unit whose stride is left out keeps the rate before it."""
    model = build_model(small_model_config("small_xception71", output_stride=output_stride, decoder="none"), CLASSES)
    found = {}

    def record(call, args, kwargs, context):
        module = context.module
        if isinstance(module, DepthwiseConv) and context.method_name == "__call__":
            unit, convolution = module.path[1:3]
            found.setdefault(unit, {})[convolution] = module.stride, module.rate
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), abstract_variables(model), images)
    for unit, (stride, rate) in plan.items():
        # The third convolution has the stride; all three have the rate.
        assert found[unit] == {"separable1": (1, rate), "separable2": (1, rate), "separable3": (stride, rate)}


@pytest.mark.parametrize("backbone", ["xception65", "xception71"])
def test_the_low_level_features_of_xception_are_its_second_convolutions_before_relu(backbone):
    model = build_model(small_model_config(backbone, output_stride=8), CLASSES)
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), np.uint8)
    _, endpoints = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), abstract_variables(model), images)
    assert endpoints["low_level_features"].shape == (1, 16, 24, 256)
    assert endpoints["mid_level_features"].shape == (1, 8, 12, 728)


@pytest.mark.parametrize(
    ("backbone", "classes", "parameters"),
    [("xception41", 19, 28_108_147), ("xception65", 21, 41_055_413), ("xception71", 151, 43_511_247)],
)
def test_deeplabv3plus_with_xception_has_the_parameters_of_the_original(backbone, classes, parameters):
    """Counted from the original's layers; ports of Xception-65 for VOC state 41.06M."""
    model = build_model(load_config("deeplabv3plus_xception65_voc", backbone=backbone).model, classes)
    assert count(abstract_variables(model)["params"]) == parameters


@pytest.mark.parametrize(
    ("features", "multiplier", "scaled"), [(24, 0.5, 16), (32, 0.35, 16), (40, 1.1, 48), (16, 0.1, 8)]
)
def test_scaled_widths_are_the_nearest_multiples_of_eight(features, multiplier, scaled):
    assert scaled_features(features, multiplier) == scaled


@pytest.mark.parametrize(("backbone", "features"), [("mobilenet_v2", 12), ("mobilenet_v2_full", 16)])
def test_mobilenets_of_half_the_width_round_as_their_originals(backbone, features):
    model = build_model(small_model_config(backbone, width_multiplier=0.5), CLASSES)
    params = abstract_variables(model)["params"]
    assert params["backbone"]["stage2_block1"]["project_conv"]["kernel"].shape[-1] == features


# ---- A backbone of a user's own ----


@pytest.fixture
def resnext(tmp_path, monkeypatch):
    """The module and the config of docs/adding_backbones.md, as files outside the package."""
    page = pathlib.Path(__file__).parents[2] / "docs" / "adding_backbones.md"
    module, config = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)[:2]
    (tmp_path / "my_resnext.py").write_text(module)
    (tmp_path / "my_config.py").write_text(config)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("deeplab_jax.models.backbones.registry.BACKBONES", BACKBONES)
    before = dict(BACKBONES)
    yield importlib.import_module("my_resnext"), tmp_path / "my_config.py"
    BACKBONES.clear()
    BACKBONES.update(before)


def test_a_backbone_from_a_users_module_becomes_a_network(resnext):
    module, config_file = resnext
    config = load_config(str(config_file))
    model = build_model(config.model, CLASSES)
    assert model.backbone == "resnext50_32x4d"
    # torchvision's 25,028,904 without the fully connected layer
    assert count(abstract_variables(model)["params"]["backbone"]) == 25_028_904 - 2_049_000
    narrow = BackboneSpec(module.ResNeXt, {"blocks": (1, 1, 1, 1), "groups": 2, "width_per_group": 4})
    register_backbone("narrow_resnext", narrow)
    model = build_model(small_model_config("narrow_resnext", output_stride=8), CLASSES, platform="cpu")
    images = random_images(1, 40, 48, 3)
    variables = random_values(abstract_variables(model))

    @jax.jit
    def run(variables, images):
        return [model.clone(ops=kind).apply(variables, images, train=False) for kind in (model.ops, ops.XLA)]

    (logits, endpoints), (plain_logits, _) = run(variables, images)
    assert logits.shape == (1, 40, 48, CLASSES)
    assert endpoints["features"].shape[1:3] == (5, 6)
    np.testing.assert_allclose(logits, plain_logits, rtol=1e-4, atol=1e-4 * float(np.abs(plain_logits).max()))


def test_a_registered_name_is_not_replaced_by_accident(resnext):
    module, _ = resnext
    spec = BackboneSpec(module.ResNeXt)
    with pytest.raises(UserError, match="resnet50_v1.* already registered"):
        register_backbone("resnet50_v1", spec)
    register_backbone("resnet50_v1", spec, overwrite=True)
    assert BACKBONES["resnet50_v1"] is spec
