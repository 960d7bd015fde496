"""The head LR-ASPP and image-level pooling over windows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import ops
from deeplab_jax.errors import UserError
from deeplab_jax.models import BACKBONES, LRASPP, BackboneSpec, build_model
from deeplab_jax.models.image_pooling import pool_image
from tests.models.support import CLASSES, evaluate, random_images, random_variables, small_model_config, train

WINDOWS = {"image_pooling_window": (33, 33), "image_pooling_stride": (1, 2), "align_corners": True}


def lraspp_config(backbone="small_mobilenet_v3_small", **fields):
    model = small_model_config(backbone, head="lraspp", **fields)
    model.decoder_channels, model.low_level_channels = 256, 48  # the defaults: the head does not take them
    return model


@pytest.mark.parametrize(
    ("window", "stride", "extent"),
    [
        ((65, 97), (1, 2), (5, 7)),
        ((32, 16), (4, 5), (2, 1)),
        ((500, 33), (1, 3), (9, 3)),
        ((500, 500), (4, 5), (9, 12)),
    ],
)
def test_image_pooling_averages_every_window_within_the_image(window, stride, extent):
    x = np.random.default_rng(0).standard_normal((2, 9, 12, 3)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, extent, axis=(1, 2))[:, :: stride[0], :: stride[1]]
    pooled = pool_image(jnp.asarray(x), window=window, stride=stride, output_stride=16)
    np.testing.assert_allclose(pooled, windows.mean(axis=(-2, -1)), rtol=0, atol=1e-6)  # float32 sums


def test_image_pooling_without_a_window_is_the_mean_of_the_image():
    x = jnp.full((1, 31, 33, 2), 0.1, jnp.bfloat16)
    pooled = pool_image(x)
    assert (pooled.shape, pooled.dtype) == ((1, 1, 1, 2), jnp.bfloat16)
    assert np.all(pooled == x[:, :1, :1])  # a sum in bfloat16 would stop growing


def test_image_pooling_takes_sizes_that_are_symbols():
    shape = jax.export.symbolic_shape("1, height, width, 2", constraints=["height >= 1", "width >= 1"])
    exported = jax.export.export(jax.jit(lambda x: pool_image(x, window=(4, 6), stride=(1, 2))))(
        jax.ShapeDtypeStruct(shape, np.float32)
    )
    for size in ((3, 4), (9, 11)):
        x = np.random.default_rng(0).standard_normal((1, *size, 2)).astype(np.float32)
        wanted = pool_image(jnp.asarray(x), window=(4, 6), stride=(1, 2))
        np.testing.assert_allclose(exported.call(x), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("backbone", "fields"),
    [
        ("small_mobilenet_v3_small", {}),
        pytest.param("mobilenet_v3_small_seg", {"lraspp_gate": "hard_sigmoid"} | WINDOWS, marks=pytest.mark.slow),
    ],
)
def test_logits_equal_those_of_the_published_order(small_backbones, backbone, fields):
    """Classifying before the features are enlarged is the same function, on the CPU's operations too."""
    model = build_model(lraspp_config(backbone, **fields), CLASSES, platform="cpu")
    assert isinstance(model, LRASPP)
    variables, images = random_variables(model), random_images(1, 97, 161, 3)
    logits, endpoints = evaluate(model, variables, images)
    published, _ = evaluate(model.clone(published_order=True, ops=ops.XLA), variables, images)
    assert logits.shape == (1, 97, 161, CLASSES)
    assert endpoints["logits"].shape[1:3] == endpoints["mid_level_features"].shape[1:3] == (13, 21)
    size = np.abs(published).max()
    assert size > 0.1
    np.testing.assert_allclose(logits / size, published / size, rtol=0, atol=1e-5)  # float32 sums in another order


def test_training_computes_the_auxiliary_head_and_new_statistics(small_backbones):
    model = build_model(
        lraspp_config(auxiliary_channels=4, auxiliary_features="mid_level_features", auxiliary_dropout=0.0), CLASSES
    )
    variables = random_variables(model)
    logits, endpoints, statistics = train(model, variables, random_images(2, 65, 65, 3))
    assert endpoints["auxiliary_logits"].shape == (2, 9, 9, CLASSES)
    assert np.all(np.isfinite(logits))
    before, after = variables["batch_stats"]["aspp"], statistics["aspp"]
    assert not np.array_equal(before["projection"]["norm"]["mean"], after["projection"]["norm"]["mean"])


@pytest.mark.parametrize(
    ("backbone", "channels"),
    [
        ("mobilenet_v3_large", (24, 40, 960)),
        ("mobilenet_v3_small_seg", (16, 88, 288)),
    ],
)
def test_skip_connections_start_where_the_originals_do(backbone, channels):
    model = build_model(lraspp_config(backbone, output_stride=32), CLASSES)
    image = jax.ShapeDtypeStruct((1, 64, 96, 3), np.uint8)
    (_, endpoints), _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), image)
    shapes = [endpoints[name].shape for name in ("low_level_features", "mid_level_features", "features")]
    assert shapes == [(1, 64 // s, 96 // s, c) for s, c in zip((4, 8, 32), channels, strict=True)]


class Coarse(nn.Module):
    """A backbone without features of stride 8."""

    layers: object
    output_stride: int
    spread_converted: bool

    def __call__(self, x):
        x = x[:, :: self.output_stride, :: self.output_stride]
        return {"low_level_features": x, "features": x}


def test_a_backbone_without_features_of_stride_8_is_refused(monkeypatch):
    monkeypatch.setitem(BACKBONES, "coarse", BackboneSpec(Coarse))
    model = build_model(lraspp_config("coarse"), CLASSES)
    with pytest.raises(UserError, match=r"head=lraspp needs features of stride 8, which coarse does not provide"):
        random_variables(model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_pooling_window": (33,)}, "image_pooling_window=.33,. and .* must be .height, width."),
        ({"image_pooling_stride": (4, 5)}, "image_pooling_stride is set, but model.image_pooling_window is empty"),
        ({"decoder": "smp"}, "model.decoder is set, but the head LRASPP does not take it"),
    ],
)
def test_fields_that_do_not_fit_are_refused_in_one_line(small_backbones, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        build_model(lraspp_config(**fields), CLASSES)
    assert "\n" not in str(caught.value)
