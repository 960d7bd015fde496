"""Mix Transformer and SegFormer: parameters, sizes, attention, drop path, precision, rematerialization, gradients."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from deeplab_jax import ops
from deeplab_jax.config import base_config
from deeplab_jax.errors import UserError
from deeplab_jax.models import BACKBONES, BackboneSpec, abstract_variables, build_model
from deeplab_jax.models.backbones.mit import (
    EfficientSelfAttention,
    MixTransformer,
    MixTransformerBlock,
    attend,
    drop_path_rates,
)
from deeplab_jax.models.layers import Layers
from deeplab_jax.parallel.jaxpr import equations
from deeplab_jax.parallel.sharding import image_sharding, replicated
from tests.models.support import CLASSES, count, random_images, random_values, random_variables, small_model_config

# Width of the decoder, and trainable parameters of the encoder and of SegFormer with 150 and 19 classes: sums over the
# layers of NVlabs/SegFormer, which round to the paper's 3.8, 13.7, 27.5, 47.3, 64.1 and 84.7 million (table 1).
PARAMETERS = {
    "mit_b0": (256, 3_319_392, 3_752_694, 3_719_027),
    "mit_b1": (256, 13_151_424, 13_715_798, 13_682_131),
    "mit_b2": (768, 24_196_288, 27_461_974, 27_361_235),
    "mit_b3": (768, 44_072_128, 47_337_814, 47_237_075),
    "mit_b4": (768, 60_842_688, 64_108_374, 64_007_635),
    "mit_b5": (768, 81_443_008, 84_708_694, 84_607_955),
}
MIT = ("drop_path", "layer_norm_epsilons", "gelu")


@pytest.fixture(autouse=True)
def small_mit(monkeypatch):
    """Adds a Mix Transformer of five narrow blocks, with two heads from the second stage on."""
    arguments = {"channels": (8, 16, 16, 24), "blocks": (2, 1, 1, 1), "heads": (1, 2, 2, 2)}
    spec = BackboneSpec(MixTransformer, arguments, options=MIT, output_strides=(32,))
    monkeypatch.setitem(BACKBONES, "small_mit", spec)


def config(backbone="small_mit", **fields):
    model = base_config().model
    model.update({"backbone": backbone, "head": "segformer", "output_stride": 32, "decoder_channels": 16} | fields)
    return model


def layers(**options):
    defaults = {
        "padding": "symmetric",
        "kernel_init": "he_normal",
        "norm_epsilon": 1e-5,
        "norm_decay": 0.9,
        "use_running_average": True,
        "dtype": jnp.float32,
        "ops": ops.XLA,
    }
    return Layers(**defaults | options)


@pytest.mark.parametrize(
    "backbone",
    [pytest.param(b, marks=pytest.mark.slow) if b in ("mit_b3", "mit_b4", "mit_b5") else b for b in PARAMETERS],
)
def test_parameters_are_those_of_the_original(backbone):
    width, encoder, ade20k, cityscapes = PARAMETERS[backbone]
    variables = abstract_variables(build_model(config(backbone, decoder_channels=width), 150))
    assert count(variables["params"]["backbone"]) == encoder
    assert count(variables["params"]) == ade20k
    assert ade20k - 131 * (width + 1) == cityscapes
    assert count(variables["batch_stats"]) == 2 * width


@pytest.mark.parametrize("size", [(32, 70), (97, 161)])
def test_any_size_of_at_least_32_works(size):
    model = build_model(config(), CLASSES)
    image = jax.ShapeDtypeStruct((1, *size, 3), np.uint8)
    logits, endpoints = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), abstract_variables(model), image)
    assert logits.shape == (1, *size, CLASSES)
    for stride, stage in ((4, 1), (8, 2), (16, 3), (32, 4)):
        assert endpoints[f"stage{stage}"].shape[1:3] == tuple(-(-side // stride) for side in size)
    assert endpoints["logits"].shape[1:3] == endpoints["stage1"].shape[1:3]


def test_smaller_images_are_refused_in_one_line():
    model = build_model(config(), CLASSES)
    image = jax.ShapeDtypeStruct((1, 31, 64, 3), np.uint8)
    with pytest.raises(UserError, match="at least 32x32 pixels, not 31x64; pad or enlarge them"):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), abstract_variables(model), image)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_stride": 16}, "model.output_stride=16, but small_mit has only 32; set it to 32"),
        ({"layer_norm_epsilons": (1e-6,)}, "model.layer_norm_epsilons has 1 values; set 4"),
        ({"decoder": "kerascv"}, "model.decoder is set, but the head SegFormer does not take it; remove it"),
        ({"multi_grid": (1, 2)}, "model.multi_grid is set, but small_mit does not take it; remove it"),
    ],
)
def test_other_fields_are_refused_in_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        build_model(config(**fields), CLASSES)


@pytest.mark.parametrize(
    "backbone", ["mobilenet_v2", "efficientnet_lite0", "resnet50_v1_beta", "resnet50_v2", "mit_b0"]
)
def test_the_stages_of_a_pyramid_have_strides_4_to_32(backbone):
    spec = BACKBONES[backbone]
    module = spec.create(layers=layers(), output_stride=32, spread_converted=False, name="backbone")
    x = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    endpoints, _ = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), x)
    assert [endpoints[name].shape[1:3] for name in spec.pyramid] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_a_backbone_without_four_stages_is_refused_in_one_line(monkeypatch):
    spec = BACKBONES["small_mit"]
    monkeypatch.setitem(BACKBONES, "other", BackboneSpec(spec.build, spec.arguments, MIT, pyramid=("a", "b", "c", "d")))
    with pytest.raises(UserError, match="model.head='segformer' needs four stages, but other has no endpoint 'a'"):
        abstract_variables(build_model(config("other"), CLASSES))


def test_deeplabs_head_runs_on_mix_transformer():
    model = build_model(small_model_config("small_mit", output_stride=32), CLASSES)
    image = jax.ShapeDtypeStruct((1, 64, 96, 3), np.uint8)
    logits, _ = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), abstract_variables(model), image)
    assert logits.shape == (1, 64, 96, CLASSES)


def test_merged_products_equal_the_published_order(float64):
    """Also the order of the concatenation: from the last stage to the first."""
    model = build_model(config(), CLASSES, compute_dtype="float64")
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), random_variables(model))
    images = random_images(2, 37, 66, 3)

    @jax.jit
    def run(variables, images):
        return [model.clone(published_order=order).apply(variables, images, train=False)[0] for order in (False, True)]

    merged, published = run(variables, images)
    np.testing.assert_allclose(merged, published, rtol=0, atol=1e-9)

    # The rows of the last stage come first: without them, the logits do not depend on its projection.
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    fuse = params["decoder/fuse/kernel"]
    params["decoder/fuse/kernel"] = fuse.at[:, :, : fuse.shape[-1]].set(0)
    without = variables | {"params": traverse_util.unflatten_dict(params, sep="/")}
    params["decoder/projection4/kernel"] = params["decoder/projection4/kernel"] * 5
    other = variables | {"params": traverse_util.unflatten_dict(params, sep="/")}
    np.testing.assert_array_equal(run(without, images)[1], run(other, images)[1])


def test_attention_without_reduction_is_plain_attention(float64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, 5, 8)))
    module = EfficientSelfAttention(layers(dtype=jnp.float64), heads=2, reduction=1, epsilon=1e-5)
    params = random_values(jax.eval_shape(lambda: module.init(jax.random.key(0), x)))["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    assert set(params) == {"query", "key", "value", "projection"}

    def linear(name, x):
        return x @ np.asarray(params[name]["kernel"][0, 0]) + np.asarray(params[name]["bias"])

    wanted = np.zeros((2, 15, 8))
    flat = np.asarray(x).reshape(2, 15, 8)
    for image in range(2):
        query, key, value = (linear(name, flat[image]) for name in ("query", "key", "value"))
        for head in (slice(0, 4), slice(4, 8)):
            for i in range(15):
                weights = np.exp(key[:, head] @ query[i, head] / np.sqrt(4))
                wanted[image, i, head] = weights / weights.sum() @ value[:, head]
    computed = module.apply({"params": params}, x).reshape(2, 15, 8)
    np.testing.assert_allclose(computed, linear("projection", wanted), rtol=1e-9, atol=1e-9)


def test_drop_path_rises_linearly_over_all_blocks():
    rates = drop_path_rates(0.1, (2, 2, 2, 2))
    assert [len(stage) for stage in rates] == [2, 2, 2, 2]
    np.testing.assert_allclose(np.concatenate(rates), np.arange(8) / 70)
    model = build_model(config(drop_path=0.4), CLASSES)
    found = {}

    def record(call, args, kwargs, context):
        if type(context.module).__name__ == "MixTransformerBlock":
            found[context.module.name] = context.module.drop_path
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        abstract_variables(model)
    np.testing.assert_allclose(list(found.values()), [0, 0.1, 0.2, 0.3, 0.4])


def test_drop_path_drops_whole_examples_and_keeps_the_expectation():
    """With a rate of 0.5 an example's branch is 0 or twice itself; the shortcut stays."""
    block = MixTransformerBlock(
        layers(train=True), heads=1, reduction=1, drop_path=0.5, epsilons=(1e-6,) * 4, gelu="exact"
    )
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 2, 2, 4)), jnp.float32)
    shapes = jax.eval_shape(lambda: block.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x))
    params = random_values(shapes)["params"]
    params["mlp"]["project"] = jax.tree.map(jnp.zeros_like, params["mlp"]["project"])  # one branch alone

    @jax.jit
    def run(params, x):
        whole = block.clone(layers=layers()).apply({"params": params}, x)
        return whole - x, block.apply({"params": params}, x, rngs={"dropout": jax.random.key(2)}) - x

    whole, dropped = (np.asarray(value).reshape(64, -1) for value in run(params, x))
    factors = np.sum(dropped * whole, axis=1) / np.sum(whole**2, axis=1)
    np.testing.assert_allclose(dropped, factors[:, None] * whole, rtol=0, atol=1e-5)  # differences of float32
    kept = np.round(factors, 3)
    assert set(kept.tolist()) == {0.0, 2.0}
    assert 16 < (kept == 2).sum() < 48  # 32 of 64 expected; either bound is 4 standard deviations away


def test_softmax_and_layer_norm_run_in_float32_under_bfloat16():
    model = build_model(config(), CLASSES, compute_dtype="bfloat16")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0])(abstract_variables(model), images)
    kinds = {}
    for path, eqn in equations(jaxpr.jaxpr):
        for operand in eqn.invars[:1]:
            kinds.setdefault(eqn.primitive.name, []).append((path, str(operand.aval.dtype)))
    assert len(kinds["exp"]) == 5  # one softmax per block
    assert {dtype for _, dtype in kinds["exp"]} == {"float32"}
    norms = [(path, dtype) for path, dtype in kinds["rsqrt"] if "backbone" in path]
    assert len(norms) == 2 * 5 + 2 * 4 + 4  # two per block, two per stage, and four reductions
    assert {dtype for _, dtype in norms} == {"float32"}
    assert {dtype for path, dtype in kinds["conv_general_dilated"] if "classifier" not in path} == {"bfloat16"}
    query = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    assert attend(query, query, query).dtype == jnp.bfloat16


def test_rows_can_be_split_over_devices():
    """The devices exchange rows of convolutions, and gather keys and values, which are small, but no features."""
    model = build_model(config(), CLASSES, ops=ops.SPATIAL)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 1, 2), ("data", "fsdp", "spatial"))
    split = image_sharding(mesh)
    images = jax.ShapeDtypeStruct((2, 256, 128, 3), np.uint8, sharding=split)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False)[0], out_shardings=split)
    compiled = apply.lower(abstract_variables(model, replicated(mesh)), images).compile()
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", compiled.as_text())
    assert len(gathered) == 2 * 5  # keys and values of each block
    # For one image, 24 channels of the last stage at 8x4 pixels. The others have as many pixels and fewer channels.
    assert max(np.prod([int(side) for side in shape.split(",")]) for shape in gathered) == 8 * 4 * 24
    variables, images = random_variables(model), random_images(2, 256, 128, 3)
    plain = jax.jit(lambda v, x: model.clone(ops=ops.XLA).apply(v, x, train=False)[0])(variables, images)
    sharded = compiled(jax.device_put(variables, replicated(mesh)), jax.device_put(images, split))
    np.testing.assert_allclose(sharded, plain, rtol=0, atol=1e-4 * float(np.abs(plain).max()))


@pytest.mark.slow  # three compilations of a gradient
def test_rematerialization_changes_no_gradient_and_every_parameter_has_one(float64):
    model = build_model(config(drop_path=0.3, classifier_dropout=0.1), CLASSES, compute_dtype="float64")
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), random_variables(model))
    images = random_images(2, 64, 96, 3)

    @jax.jit
    def gradients(params, images):
        def loss(params, remat):
            (logits, _), _ = model.clone(remat=remat).apply(
                variables | {"params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(3)},
            )
            return jnp.mean(jnp.square(logits - 1))

        return [jax.grad(loss)(params, remat) for remat in ("none", "activations", "units")]

    plain, *others = gradients(variables["params"], images)
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), plain, other)
    for path, leaf in traverse_util.flatten_dict(plain, sep="/").items():
        # Softmax does not see a constant added to all keys, nor BatchNorm one added to all pixels. Only the
        # decoder reads the last stage.
        unseen = (r".*key/bias", r"backbone/stage4_norm/bias", r"decoder/projection\d/bias")
        if not any(re.fullmatch(pattern, path) for pattern in unseen):
            assert np.abs(leaf).max() > 1e-8, f"{path} has no gradient"
