"""The CPU backend equals plain XLA, and its programs have the properties that make them fast."""

import functools
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_jax import ops
from deeplab_jax.ops.cpu import dense, scheduling, winograd
from tests.support.operations import (
    CPU,
    TOLERANCE,
    assert_equals_xla,
    conv,
    depthwise_conv,
    few,
    max_pool,
    random,
    random_cotangent,
    sizes,
    value_and_gradients,
)

pytestmark = pytest.mark.usefixtures("float64")
paddings = st.sampled_from(ops.PADDINGS)


@pytest.fixture(autouse=True)
def few_values(monkeypatch):
    """Moves thresholds so that images of a few pixels are on either side of them."""
    monkeypatch.setattr(dense, "_SMALL_VALUES", 300)
    monkeypatch.setattr(winograd, "_LEAST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(winograd, "_LEAST_CHANNELS", 32)
    monkeypatch.setattr(winograd, "_WHOLE_VALUES", 8000)
    monkeypatch.setattr(winograd, "_BAND_VALUES", 4000)


@few
@given(size=sizes, window=st.sampled_from([1, 3]), stride=st.integers(1, 3), rate=st.integers(1, 3), padding=paddings)
def test_convolutions_equal_xla(size, window, stride, rate, padding):
    options = {"stride": stride, "rate": rate, "padding": padding}
    x = random((2, *size, 3))
    assert_equals_xla(functools.partial(conv, **options), x, random((window, window, 3, 4), seed=1))
    assert_equals_xla(functools.partial(depthwise_conv, **options), x, random((window, window, 1, 3), seed=1))


@few
@given(
    size=sizes,
    rate=st.integers(1, 3),
    padding=paddings,
    features=st.integers(1, 4),
    band_values=st.sampled_from([1, 100, 10**6]),  # bands of a row of tiles, of a few, and all in one
)
def test_convolutions_by_tiles_equal_xla(size, rate, padding, features, band_values):
    settings = {"_LEAST_CHANNELS": 1, "_WORTHWHILE": math.inf, "_WHOLE_VALUES": 0, "_BAND_VALUES": band_values}
    with mock.patch.object(dense, "_SPARSE_SHARE", -1), mock.patch.multiple(winograd, **settings):
        operation = functools.partial(conv, rate=rate, padding=padding)
        assert_equals_xla(operation, random((2, *size, 3)), random((3, 3, 3, features), seed=1))


def test_convolutions_of_other_kinds_go_to_xla():
    """Different strides, other layouts, padding that changes the size, and symbolic sizes."""
    x, kernel = jnp.asarray(random((2, 8, 7, 3))), jnp.asarray(random((3, 3, 3, 4), seed=1))
    layout = ("NHWC", "HWIO", "NHWC")
    cases = [
        ((x, kernel, (1, 2), "SAME"), {"dimension_numbers": layout}),
        ((x, kernel, (1, 1), "VALID"), {"dimension_numbers": layout}),
        ((x, kernel, (1, 1), ((3, 3), (3, 3))), {"dimension_numbers": layout}),
        ((x, kernel, (1, 1), "SAME"), {"rhs_dilation": (1, 2), "dimension_numbers": layout}),
        ((x, kernel, (1, 1), ((1, 1), (1, 1))), {"lhs_dilation": (2, 2), "dimension_numbers": layout}),
        ((x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), (1, 1), "SAME"), {}),
    ]
    for arguments, options in cases:
        expected = jax.lax.conv_general_dilated(*arguments, **options)
        np.testing.assert_array_equal(CPU.conv_general_dilated(*arguments, **options), expected)
    batch, height = jax.export.symbolic_shape("batch, height")
    x = jax.ShapeDtypeStruct((batch, height, 16, 3), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: conv(x, jnp.ones((1, 1, 3, 4), jnp.float32))))(x)
    assert exported.out_avals[0].shape == (batch, height, 16, 4)


def multiplications(function, *shapes):
    """Counts them as XLA does, in a program for this CPU."""
    analysis = jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).cost_analysis()
    return analysis["flops"] / 2


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
    monkeypatch.undo()  # the thresholds of the fixture
    taps = math.prod(kernel) * x[0] * math.prod(size // options.get("stride", 1) for size in x[1:3])
    # The sums of tiles count too. XLA leaves out the products of padding.
    assert multiplications(functools.partial(conv, **options), x, kernel) / taps == pytest.approx(share, rel=0.12)


@few
@given(size=sizes, window=st.integers(2, 4), stride=st.integers(1, 4), seed=st.integers(0, 9))
def test_max_pool_gives_the_gradient_of_equal_values_to_the_first(size, window, stride, seed):
    x = np.random.default_rng(seed).integers(0, 3, (2, *size, 3)).astype(float)  # ties everywhere
    assert_equals_xla(functools.partial(max_pool, window=window, stride=stride, padding="same_upper"), x)


@few
@given(size=sizes, stride=st.integers(1, 3), padding=paddings, seed=st.integers(0, 9))
def test_max_pool_equals_xla(size, stride, padding, seed):
    assert_equals_xla(
        functools.partial(max_pool, window=3, stride=stride, padding=padding), random((2, *size, 3), seed)
    )


@pytest.mark.parametrize(
    ("window", "band_values"),
    [(1, 0), (3, 8000), pytest.param(3, 10**9, marks=pytest.mark.slow)],  # tiles in bands, and in one
)
def test_a_chain_of_units_keeps_one_array_per_unit(monkeypatch, window, band_values):
    """The gradient keeps the output of each convolution and computes that of ReLU again."""
    monkeypatch.setattr(winograd, "_WHOLE_VALUES", band_values)
    monkeypatch.setattr(winograd, "_BAND_VALUES", band_values)
    x, kernel = jnp.ones((4, 64, 64, 32), jnp.float32), jnp.ones((window, window, 32, 32), jnp.float32)

    def loss(parameters, x):
        for kernel, scale, bias in parameters:
            x = jax.nn.relu(CPU.batch_norm(conv(x, kernel), scale, bias, 1e-5)[0])
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
                x = jax.nn.relu(conv(x, kernel))
            return x

        compiled = jax.jit(chain).lower([kernel] * layers, jnp.ones((1, 32, 32, 256), jnp.float32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) - temporaries(4) < kernel.nbytes


def test_stored_returns_its_argument_and_so_does_its_gradient():
    x = jnp.asarray([1.5, -0.0, jnp.inf, -jnp.inf, jnp.nan, 1e-300])
    output, pullback = jax.vjp(jax.jit(scheduling.stored), x)
    np.testing.assert_array_equal(output, x)
    np.testing.assert_array_equal(np.signbit(output), np.signbit(x))
    np.testing.assert_array_equal(pullback(x)[0], x)


def test_sums_are_computed_once():
    """In a chain of cheap operations whose results are all read by something that is not fused with them."""

    def count(using):
        def chain(x, kernel):
            for _ in range(6):
                x = jax.nn.relu(using.add(x, x @ kernel))
            return x

        x, kernel = jnp.ones((64, 32), jnp.float32), jnp.ones((32, 32), jnp.float32)
        text = jax.jit(chain).lower(x, kernel).compile().as_text()
        return len(re.findall(r" add\((?!%constant|%broadcast)", text)), text.count(" divide(")

    assert count(CPU)[1] == 6
    assert count(ops.XLA)[0] > 6


# Each operation that the backend has code for: options, and shapes of the arguments. Batch 8, for 8 devices.
CASES = {
    "1x1": (conv, {}, (8, 8, 6, 5), (1, 1, 5, 4)),
    "strided 1x1": (conv, {"stride": 2}, (8, 7, 6, 5), (1, 1, 5, 4)),
    "3x3": (conv, {}, (8, 8, 6, 5), (3, 3, 5, 4)),
    "sparse 3x3": (conv, {"rate": 5}, (8, 8, 6, 5), (3, 3, 5, 4)),
    "3x3, one band": (conv, {"rate": 2}, (8, 8, 6, 50), (3, 3, 50, 4)),
    "3x3, two bands": (conv, {}, (8, 16, 3, 50), (3, 3, 50, 4)),
    "3x3, uneven bands": (conv, {}, (8, 13, 3, 50), (3, 3, 50, 4)),
    "7x7, bands of stride 2": (conv, {"stride": 2}, (8, 32, 9, 3), (7, 7, 3, 4)),
    "3x3, uneven bands of stride 3": (conv, {"stride": 3}, (8, 29, 7, 5), (3, 3, 5, 4)),
    "3x3, tiles": (conv, {}, (8, 8, 6, 32), (3, 3, 32, 33)),
    "3x3, tiles beyond the border": (conv, {}, (8, 7, 9, 32), (3, 3, 32, 32)),
    "3x3, uneven bands of tiles": (conv, {}, (8, 26, 6, 32), (3, 3, 32, 32)),
    "3x3, tiles of rate 2": (conv, {"rate": 2}, (8, 16, 8, 32), (3, 3, 32, 32)),
    "depthwise": (depthwise_conv, {}, (8, 8, 6, 5), (3, 3, 1, 5)),
    "strided depthwise": (depthwise_conv, {"stride": 2}, (8, 9, 6, 5), (5, 5, 1, 5)),
    "sparse depthwise": (depthwise_conv, {"rate": 5}, (8, 8, 6, 5), (3, 3, 1, 5)),
    "max-pool": (max_pool, {"window": 3, "stride": 2}, (8, 8, 6, 5)),
}
cases = pytest.mark.parametrize("name", CASES)


def case(name, dtype=np.float64):
    function, options, *shapes = CASES[name]
    operation = functools.partial(function, **options)
    arguments = [random(shape, seed).astype(dtype) for seed, shape in enumerate(shapes)]
    return operation, (random_cotangent(operation, *arguments).astype(dtype), *arguments)


@cases
@pytest.mark.parametrize(
    ("dtype", "bound"),
    # Sums of at most 400 products of order 1 in another order: a few roundings of the largest value. bfloat16 keeps 8
    # bits, and the plain gradients round partial sums to it as well.
    [(np.float32, 1e-5), (jnp.bfloat16, 4e-2)],
)
def test_operations_agree_with_xla_in_training_dtypes(name, dtype, bound):
    operation, arguments = case(name, dtype)

    @jax.jit
    def both(*arguments):
        exact = (argument.astype(np.float64) for argument in arguments)
        return value_and_gradients(operation, CPU)(*arguments), value_and_gradients(operation, ops.XLA)(*exact)

    for fast, expected in zip(*both(*arguments), strict=True):
        assert fast.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(fast, np.float64), expected, rtol=0, atol=bound * float(np.abs(expected).max())
        )


@cases
@pytest.mark.parametrize("axis", ["batch", "height"])
def test_operations_work_on_split_images(name, axis):
    """Split over eight devices the result is the same; split by image, no device needs another's images."""
    operation, (cotangent, x, *kernel) = case(name)
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
    compiled = jax.jit(value_and_gradients(operation, CPU)).lower(*placed).compile()
    expected = jax.jit(value_and_gradients(operation, ops.XLA))(cotangent, x, *kernel)
    for split, alone in zip(compiled(*placed), expected, strict=True):
        np.testing.assert_allclose(split, alone, **TOLERANCE)
    if axis == "batch":
        assert "all-gather" not in compiled.as_text()
        assert "all-to-all" not in compiled.as_text()
