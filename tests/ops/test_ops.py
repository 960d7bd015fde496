"""Every operation equals an independent reference, and every formulation of it equals the plain one."""

import functools
import math
import re
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax import ops
from deeplab_jax.ops import conv, winograd
from tests.support.formulations import (
    TOLERANCE,
    assert_formulations_equal,
    few,
    random,
    random_cotangent,
    sizes,
    value_and_gradients,
)

pytestmark = pytest.mark.usefixtures("float64")
paddings = st.sampled_from(ops.PADDINGS)


@pytest.fixture(autouse=True)
def few_values(monkeypatch):
    """Images of a few pixels on either side of what is small."""
    monkeypatch.setattr(conv, "_SMALL_VALUES", 300)
    monkeypatch.setattr(winograd, "_LEAST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(winograd, "_WHOLE_VALUES", 8000)
    monkeypatch.setattr(winograd, "_BAND_VALUES", 4000)


def reference_padding(size, window, stride, rate, padding):
    """Pixels before and after, from the definitions of TensorFlow's SAME and of PyTorch's padding=rate*(k-1)/2."""
    reach = rate * (window - 1)
    if padding == "symmetric":
        return reach // 2, reach // 2
    outputs = (size + stride - 1) // stride
    total = max((outputs - 1) * stride + reach + 1 - size, 0)
    return total // 2, total - total // 2


def reference_conv(x, kernel, stride, rate, padding):
    """A convolution as loops over output pixels and taps."""
    kernel_height, kernel_width, _, features = kernel.shape
    pads = [
        reference_padding(size, window, stride, rate, padding)
        for size, window in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    ]
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    out_height, out_width = (-(-size // stride) for size in x.shape[1:3])
    output = np.zeros((len(x), out_height, out_width, features))
    for row in range(out_height):
        for column in range(out_width):
            for i in range(kernel_height):
                for j in range(kernel_width):
                    pixel = padded[:, row * stride + i * rate, column * stride + j * rate]
                    output[:, row, column] += pixel @ kernel[i, j]
    return output


@few
@given(
    size=sizes, window=st.sampled_from([1, 3, 5]), stride=st.integers(1, 3), rate=st.integers(1, 3), padding=paddings
)
def test_conv2d_equals_loops_over_taps(size, window, stride, rate, padding):
    x, kernel = random((2, *size, 3)), random((window, window, 3, 4), seed=1)
    expected = reference_conv(x, kernel, stride, rate, padding)
    for formulation in ("auto", "plain"):
        output = ops.conv2d(
            jnp.asarray(x), jnp.asarray(kernel), stride=stride, rate=rate, padding=padding, formulation=formulation
        )
        np.testing.assert_allclose(output, expected, **TOLERANCE)


@few
@given(size=sizes, window=st.sampled_from([1, 3]), stride=st.integers(1, 3), rate=st.integers(1, 3), padding=paddings)
def test_conv2d_formulations_are_equal(size, window, stride, rate, padding):
    assert_formulations_equal(
        lambda x, kernel, formulation: ops.conv2d(
            x, kernel, stride=stride, rate=rate, padding=padding, formulation=formulation
        ),
        random((2, *size, 3)),
        random((window, window, 3, 4), seed=1),
    )


@few
@given(
    size=sizes,
    rate=st.integers(1, 3),
    padding=paddings,
    features=st.integers(1, 4),
    band_values=st.sampled_from([1, 100, 10**6]),  # bands of a row of tiles, of a few, and all in one
)
def test_conv2d_by_tiles_equals_the_plain_one(size, rate, padding, features, band_values):
    settings = {"_LEAST_CHANNELS": 1, "_WORTHWHILE": math.inf, "_WHOLE_VALUES": 0, "_BAND_VALUES": band_values}
    with mock.patch.object(conv, "_SPARSE_SHARE", -1), mock.patch.multiple(winograd, **settings):
        assert_formulations_equal(
            lambda x, kernel, formulation: ops.conv2d(x, kernel, rate=rate, padding=padding, formulation=formulation),
            random((2, *size, 3)),
            random((3, 3, 3, features), seed=1),
        )


def multiplications(function, *shapes):
    """As XLA counts them, of a program for this processor."""
    analysis = jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).cost_analysis()
    return analysis["flops"] / 2


@pytest.mark.parametrize(("channels", "features"), [(24, 8), (8, 24)])
def test_kernel_gradients_of_programs_for_cpus_multiply_the_narrower_factor_first(channels, features):
    """XLA turns a transposed product back unless it is kept from it."""

    def gradient(kernel, x, cotangent):
        return jax.vjp(lambda kernel: ops.conv2d(x, kernel), kernel)[1](cotangent)

    shapes = ((1, 1, channels, features), (2, 16, 16, channels), (2, 16, 16, features))
    compiled = jax.jit(gradient).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    assert re.findall(r"= f32\[([\d,]+)\]\S* dot\(", compiled.as_text()) == ["8,24"]


@pytest.mark.parametrize(
    ("share", "options", "x", "kernel"),
    [
        (4 / 9, {}, (1, 32, 32, 256), (3, 3, 256, 256)),
        (4 / 9, {"rate": 2}, (4, 32, 32, 512), (3, 3, 512, 512)),
        (4 / 9 * 36**2 / 32**2, {"rate": 6}, (1, 32, 32, 512), (3, 3, 512, 256)),
        (1, {"stride": 2}, (1, 64, 64, 128), (3, 3, 128, 128)),
        (1, {}, (1, 512, 512, 3), (3, 3, 3, 64)),  # thin
        (1, {}, (1, 16, 16, 64), (3, 3, 64, 64)),  # small
        ((42 / 54) ** 2, {"rate": 6}, (1, 18, 18, 256), (3, 3, 256, 256)),  # tiles of 24x24
        (1, {}, (1, 64, 64, 64), (5, 5, 64, 64)),
    ],
)
def test_large_3x3_convolutions_make_four_multiplications_for_nine(monkeypatch, share, options, x, kernel):
    monkeypatch.undo()  # of what is small
    operation = functools.partial(ops.conv2d, **options)
    taps = math.prod(kernel) * x[0] * math.prod(size // options.get("stride", 1) for size in x[1:3])
    # The sums of tiles count too. XLA leaves out the products of padding.
    assert multiplications(operation, x, kernel) / taps == pytest.approx(share, rel=0.12)


@few
@given(
    size=sizes, window=st.sampled_from([1, 3, 5]), stride=st.integers(1, 3), rate=st.integers(1, 3), padding=paddings
)
def test_depthwise_conv2d_equals_a_convolution_of_each_channel(size, window, stride, rate, padding):
    x, kernel = random((2, *size, 3)), random((window, window, 1, 3), seed=1)
    expected = np.concatenate(
        [reference_conv(x[..., c : c + 1], kernel[..., c : c + 1], stride, rate, padding) for c in range(3)], axis=-1
    )
    output = ops.depthwise_conv2d(jnp.asarray(x), jnp.asarray(kernel), stride=stride, rate=rate, padding=padding)
    np.testing.assert_allclose(output, expected, **TOLERANCE)


@few
@given(size=sizes, window=st.sampled_from([1, 3]), stride=st.integers(1, 3), rate=st.integers(1, 3), padding=paddings)
def test_depthwise_conv2d_formulations_are_equal(size, window, stride, rate, padding):
    assert_formulations_equal(
        lambda x, kernel, formulation: ops.depthwise_conv2d(
            x, kernel, stride=stride, rate=rate, padding=padding, formulation=formulation
        ),
        random((2, *size, 3)),
        random((window, window, 1, 3), seed=1),
    )


@settings(few, max_examples=30)
@given(size=sizes, window=st.sampled_from([1, 3]), stride=st.integers(1, 3), rate=st.integers(1, 14), padding=paddings)
def test_met_taps_are_those_that_a_image_of_ones_reaches(size, window, stride, rate, padding):
    def summed(kernel):
        ones = jnp.ones((1, *size, 1))
        return jnp.sum(ops.conv2d(ones, kernel, stride=stride, rate=rate, padding=padding, formulation="plain"))

    reached = jax.grad(summed)(jnp.ones((window, window, 1, 1)))[..., 0, 0]
    met = ops.met_taps(size, (window, window), stride=stride, rate=rate, padding=padding)
    np.testing.assert_array_equal(met, reached > 0)


@few
@given(size=sizes, stride=st.integers(1, 3), padding=paddings)
def test_max_pool_equals_loops_and_its_formulations_each_other(size, stride, padding):
    count = 2 * size[0] * size[1] * 3
    x = np.random.default_rng(0).permutation(count).reshape(2, *size, 3) - count / 2.0  # distinct: no ties; some < 0
    pads = [reference_padding(extent, 3, stride, 1, padding) for extent in size]
    padded = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-np.inf)
    out_size = [-(-extent // stride) for extent in size]
    expected = np.zeros((2, *out_size, 3))
    for row in range(out_size[0]):
        for column in range(out_size[1]):
            top, left = row * stride, column * stride
            expected[:, row, column] = padded[:, top : top + 3, left : left + 3].max(axis=(1, 2))
    output = ops.max_pool(jnp.asarray(x), window=3, stride=stride, padding=padding)
    np.testing.assert_array_equal(output, expected)
    assert_formulations_equal(
        lambda x, formulation: ops.max_pool(x, window=3, stride=stride, padding=padding, formulation=formulation), x
    )


@few
@given(size=sizes, window=st.integers(2, 4), stride=st.integers(1, 4), seed=st.integers(0, 9))
def test_max_pool_gives_the_gradient_of_equal_values_to_the_first(size, window, stride, seed):
    x = np.random.default_rng(seed).integers(0, 3, (2, *size, 3)).astype(float)  # ties everywhere
    assert_formulations_equal(
        lambda x, formulation: ops.max_pool(
            x, window=window, stride=stride, padding="same_upper", formulation=formulation
        ),
        x,
    )


def test_max_pool_ignores_padding_where_all_is_negative():
    x = jnp.full((1, 5, 5, 1), -3.0)
    np.testing.assert_array_equal(ops.max_pool(x, window=3, stride=2), np.full((1, 3, 3, 1), -3.0))


def flax_batch_norm(x, scale, bias, epsilon):
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)},
    }
    # a momentum of 0 makes the running statistics those of the batch
    norm = nn.BatchNorm(use_running_average=False, epsilon=epsilon, momentum=0.0)
    output, updates = norm.apply(variables, x, mutable=["batch_stats"])
    return output, updates["batch_stats"]["mean"], updates["batch_stats"]["var"]


@few
@given(size=sizes, epsilon=st.sampled_from([1e-5, 1e-3]), seed=st.integers(0, 9))
def test_batch_norm_and_its_gradients_equal_flax(size, epsilon, seed):
    x = 3 + 2 * random((2, *size, 4), seed)
    x[..., 3] = 1.5  # a channel without variance
    cotangent = random(x.shape, seed=9)

    def run(norm, x, scale, bias):
        (output, *statistics), pullback = jax.vjp(lambda *arguments: norm(*arguments, epsilon), x, scale, bias)
        return output, *statistics, *pullback((cotangent, *map(jnp.zeros_like, statistics)))

    arguments = x, 1 + 0.1 * random(4, seed=1), random(4, seed=2)
    results = [jax.jit(functools.partial(run, norm))(*arguments) for norm in (ops.batch_norm, flax_batch_norm)]
    names = ("output", "mean", "variance", "gradient of x", "of the scale", "of the bias")
    for name, ours, flaxs in zip(names, *results, strict=True):
        # Divided by sqrt(variance + epsilon), at least 1e-5 ** 0.5, and twice so in gradients: 1e-14 becomes 1e-9.
        np.testing.assert_allclose(ours, flaxs, rtol=1e-9, atol=1e-8, err_msg=name)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_batch_norm_computes_narrow_types_in_float32(dtype, bound):
    x, scale, bias = 3 + random((2, 16, 16, 4)), 1 + 0.1 * random(4, seed=1), random(4, seed=2)
    x = np.asarray(jnp.asarray(x, dtype).astype(jnp.float64))  # what both see
    cotangent = np.asarray(jnp.asarray(random(x.shape, seed=9), dtype).astype(jnp.float64))

    def run(dtype, parameters):
        arguments = jnp.asarray(x, dtype), jnp.asarray(scale, parameters), jnp.asarray(bias, parameters)
        (output, *statistics), pullback = jax.vjp(lambda *xs: ops.batch_norm(*xs, 1e-5), *arguments)
        gradients = pullback((jnp.asarray(cotangent, dtype), *map(jnp.zeros_like, statistics)))
        return output, *statistics, *gradients

    narrow, wide = run(dtype, jnp.float32), run(jnp.float64, jnp.float64)
    assert [result.dtype for result in narrow] == [dtype, *[jnp.float32] * 2, dtype, *[jnp.float32] * 2]
    for ours, exact in zip(narrow, wide, strict=True):
        # bfloat16 rounds results to 8 bits; sums of 512 products in float32 lose a few of 24
        np.testing.assert_allclose(ours.astype(jnp.float64), exact, rtol=bound, atol=bound)


@pytest.mark.parametrize(("window", "band_values"), [(1, 0), (3, 8000), (3, 10**9)])  # tiles in bands, and in one
def test_a_chain_of_units_keeps_one_array_of_each_for_its_gradient(monkeypatch, window, band_values):
    """What the convolution returns; what ReLU returns is computed from it again for the next kernel's gradient."""
    monkeypatch.setattr(winograd, "_WHOLE_VALUES", band_values)
    monkeypatch.setattr(winograd, "_BAND_VALUES", band_values)
    x, kernel = jnp.ones((4, 64, 64, 32), jnp.float32), jnp.ones((window, window, 32, 32), jnp.float32)

    def loss(parameters, x):
        for kernel, scale, bias in parameters:
            x = jax.nn.relu(ops.batch_norm(ops.conv2d(x, kernel), scale, bias, 1e-5)[0])
        return jnp.sum(x)

    def arrays(units):
        parameters = [(kernel, *jnp.ones((2, 32), jnp.float32)) for _ in range(units)]
        compiled = jax.jit(jax.grad(loss)).lower(parameters, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes / x.nbytes

    few, many = arrays(4), arrays(8)
    assert many - few == pytest.approx(4, abs=0.2)  # kernels, and their gradients until the end
    assert few <= 4 + 16  # for the moment: images in tiles have 4 times the values, and so have their cotangents


def test_the_matrices_of_one_kernel_exist_at_a_time():
    """They have 16 values for a kernel's 9, and depend on no image: nothing else keeps them from coming first."""
    kernel = jnp.ones((3, 3, 256, 256), jnp.float32)

    def temporaries(layers):
        def chain(kernels, x):
            for kernel in kernels:
                x = jax.nn.relu(ops.conv2d(x, kernel))
            return x

        compiled = jax.jit(chain).lower([kernel] * layers, jnp.ones((1, 32, 32, 256), jnp.float32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) - temporaries(4) < kernel.nbytes


def test_what_is_stored_is_the_same_on_every_platform_and_so_is_its_gradient():
    x = jnp.asarray([1.5, -0.0, jnp.inf, -jnp.inf, jnp.nan, 1e-300])
    output, pullback = jax.vjp(jax.jit(ops.stored), x)
    np.testing.assert_array_equal(output, x)
    np.testing.assert_array_equal(np.signbit(output), np.signbit(x))
    np.testing.assert_array_equal(pullback(x)[0], x)
    cases = [("cpu", "auto", 1), ("cpu", "plain", 0), ("cuda", "auto", 0), ("tpu", "auto", 0)]
    for platform, formulation, divisions in cases:
        traced = jax.jit(functools.partial(ops.stored, formulation=formulation)).trace(x)
        assert traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.divide") == divisions


def test_what_is_stored_is_computed_once():
    """Of a chain of cheap operations whose results are all read by something that is not fused with them."""

    def count(keep):
        def chain(x, kernel):
            for _ in range(6):
                x = keep(jax.nn.relu(x + x @ kernel))
            return x

        x, kernel = jnp.ones((64, 32), jnp.float32), jnp.ones((32, 32), jnp.float32)
        text = jax.jit(chain).lower(x, kernel).compile().as_text()
        return text.count(" maximum(")

    assert count(ops.stored) == 6 < count(lambda x: x)


def test_symmetric_padding_keeps_strided_outputs_on_every_stride_th_pixel():
    x = jnp.asarray(random((1, 9, 12, 2)))
    kernel = jnp.asarray(random((3, 3, 2, 2), seed=1))
    dense, strided = ops.conv2d(x, kernel), ops.conv2d(x, kernel, stride=2)
    np.testing.assert_allclose(strided, dense[:, ::2, ::2], **TOLERANCE)


def test_explicit_padding_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="'same' is not one of same_upper, symmetric"):
        ops.explicit_padding("same", (8, 8), (3, 3))
    with pytest.raises(ValueError, match="odd windows"):
        ops.explicit_padding("symmetric", (8, 8), (2, 2))


# Each operation where it has a formulation of its own: options, and shapes of the arguments. Batch 8, for 8 devices.
FORMULATED = {
    "1x1": (ops.conv2d, {}, (8, 8, 6, 5), (1, 1, 5, 4)),
    "strided 1x1": (ops.conv2d, {"stride": 2}, (8, 7, 6, 5), (1, 1, 5, 4)),
    "3x3": (ops.conv2d, {}, (8, 8, 6, 5), (3, 3, 5, 4)),
    "sparse 3x3": (ops.conv2d, {"rate": 5}, (8, 8, 6, 5), (3, 3, 5, 4)),
    "3x3, one band": (ops.conv2d, {"rate": 2}, (8, 8, 6, 50), (3, 3, 50, 4)),
    "3x3, two bands": (ops.conv2d, {}, (8, 16, 3, 50), (3, 3, 50, 4)),
    "3x3, uneven bands": (ops.conv2d, {}, (8, 13, 3, 50), (3, 3, 50, 4)),
    "7x7, bands of stride 2": (ops.conv2d, {"stride": 2}, (8, 32, 9, 3), (7, 7, 3, 4)),
    "3x3, uneven bands of stride 3": (ops.conv2d, {"stride": 3}, (8, 29, 7, 5), (3, 3, 5, 4)),
    "3x3, tiles": (ops.conv2d, {}, (8, 8, 6, 32), (3, 3, 32, 33)),
    "3x3, tiles beyond the border": (ops.conv2d, {}, (8, 7, 9, 32), (3, 3, 32, 32)),
    "3x3, uneven bands of tiles": (ops.conv2d, {}, (8, 26, 6, 32), (3, 3, 32, 32)),
    "3x3, tiles of rate 2": (ops.conv2d, {"rate": 2}, (8, 16, 8, 32), (3, 3, 32, 32)),
    "depthwise": (ops.depthwise_conv2d, {}, (8, 8, 6, 5), (3, 3, 1, 5)),
    "strided depthwise": (ops.depthwise_conv2d, {"stride": 2}, (8, 9, 6, 5), (5, 5, 1, 5)),
    "sparse depthwise": (ops.depthwise_conv2d, {"rate": 5}, (8, 8, 6, 5), (3, 3, 1, 5)),
    "max-pool": (ops.max_pool, {"window": 3, "stride": 2}, (8, 8, 6, 5)),
    "resize": (ops.resize_bilinear, {"size": (32, 24)}, (8, 8, 6, 5)),
    "resize, corners aligned": (ops.resize_bilinear, {"size": (29, 21), "align_corners": True}, (8, 8, 6, 5)),
}
formulated = pytest.mark.parametrize("name", FORMULATED)


def formulated_case(name, dtype=np.float64):
    function, options, *shapes = FORMULATED[name]
    operation = functools.partial(function, **options)
    arguments = [random(shape, seed).astype(dtype) for seed, shape in enumerate(shapes)]
    return operation, (random_cotangent(operation, *arguments).astype(dtype), *arguments)


@formulated
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_the_plain_operation(name, platform):
    operation, arguments = formulated_case(name, np.float32)
    kinds = ("convolution", "dot_general", "select_and_scatter", "while", "slice", "pad")
    counts = []
    for formulation in ("auto", "plain"):
        traced = jax.jit(value_and_gradients(operation, formulation)).trace(*arguments)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        counts.append({kind: text.count(f"stablehlo.{kind}") for kind in kinds})
    auto, plain = counts
    assert auto == plain
    if operation.func in (ops.conv2d, ops.depthwise_conv2d):
        assert auto["convolution"] == 3  # the value and two gradients
        assert auto["dot_general"] == 0


@formulated
@pytest.mark.parametrize(
    ("dtype", "bound"),
    # Sums of at most 400 products of order 1 in another order: a few roundings of the largest value. bfloat16 keeps 8
    # bits, and the plain gradients round partial sums to it as well.
    [(np.float32, 1e-5), (jnp.bfloat16, 4e-2)],
)
def test_formulations_agree_in_the_types_that_train(name, dtype, bound):
    operation, arguments = formulated_case(name, dtype)
    exact = value_and_gradients(operation, "plain")(*(argument.astype(np.float64) for argument in arguments))
    for fast, expected in zip(jax.jit(value_and_gradients(operation, "auto"))(*arguments), exact, strict=True):
        assert fast.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(fast, np.float64), expected, rtol=0, atol=bound * float(np.abs(expected).max())
        )


@formulated
@pytest.mark.parametrize("axis", ["batch", "height"])
def test_formulations_work_on_split_images(name, axis):
    """Split over eight devices the result is the same; and split by image, no device needs another's images."""
    operation, (cotangent, x, *kernel) = formulated_case(name)
    if axis == "height" and x.shape[1] % 8:
        pytest.skip("this height does not divide over eight devices")
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, by_batch, by_height = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in ((), ("devices",), (None, "devices"))
    )
    if axis == "batch":
        placed = [jax.device_put(cotangent, by_batch), jax.device_put(x, by_batch)]
    else:
        placed = [jax.device_put(cotangent, whole), jax.device_put(x, by_height)]
    placed += [jax.device_put(array, whole) for array in kernel]
    function = jax.jit(value_and_gradients(operation, "auto"))
    compiled = function.lower(*placed).compile()
    for split, expected in zip(compiled(*placed), function(cotangent, x, *kernel), strict=True):
        np.testing.assert_allclose(split, expected, **TOLERANCE)
    if axis == "batch":
        assert "all-gather" not in compiled.as_text()
        assert "all-to-all" not in compiled.as_text()


def test_operations_keep_bfloat16():
    x = jnp.ones((1, 5, 7, 2), jnp.bfloat16)
    assert ops.conv2d(x, jnp.ones((1, 1, 2, 3), jnp.bfloat16)).dtype == jnp.bfloat16
    assert ops.depthwise_conv2d(x, jnp.ones((3, 3, 1, 2), jnp.bfloat16)).dtype == jnp.bfloat16
    assert ops.max_pool(x, window=3, stride=2).dtype == jnp.bfloat16
    assert ops.resize_bilinear(x, (9, 9)).dtype == jnp.bfloat16
    assert ops.resize_bilinear(x, (9, 9), align_corners=True).dtype == jnp.bfloat16
