"""Plain XLA operations against independent references, and the choice of a set by platform."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_jax import ops
from deeplab_jax.errors import UserError
from tests.support.operations import CPU, TOLERANCE, conv, depthwise_conv, few, max_pool, random, resize, sizes

pytestmark = pytest.mark.usefixtures("float64")
paddings = st.sampled_from(ops.PADDINGS)
SETS = (ops.XLA, CPU)


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
def test_convolutions_equal_loops_over_taps(size, window, stride, rate, padding):
    options = {"stride": stride, "rate": rate, "padding": padding}
    x, kernel, depthwise = random((2, *size, 3)), random((window, window, 3, 4), 1), random((window, window, 1, 3), 2)
    expected = reference_conv(x, kernel, **options)
    expected_depthwise = np.concatenate(
        [reference_conv(x[..., c : c + 1], depthwise[..., c : c + 1], **options) for c in range(3)], axis=-1
    )

    @jax.jit
    def run(x, kernel, depthwise):
        return [
            (conv(x, kernel, using=using, **options), depthwise_conv(x, depthwise, using=using, **options))
            for using in SETS
        ]

    for output, output_depthwise in run(x, kernel, depthwise):
        np.testing.assert_allclose(output, expected, **TOLERANCE)
        np.testing.assert_allclose(output_depthwise, expected_depthwise, **TOLERANCE)


@pytest.mark.parametrize("using", SETS, ids=lambda using: using.name)
def test_groups_of_channels_are_convolved_independently(using):
    x, kernel = random((2, 7, 5, 6)), random((3, 3, 3, 8), seed=1)
    output = conv(x, kernel, using=using, groups=2, stride=2)
    halves = [
        reference_conv(x[..., 3 * i : 3 * i + 3], kernel[..., 4 * i : 4 * i + 4], 2, 1, "symmetric") for i in (0, 1)
    ]
    np.testing.assert_allclose(output, np.concatenate(halves, axis=-1), **TOLERANCE)


@few
@given(size=sizes, stride=st.integers(1, 3), padding=paddings)
def test_max_pool_equals_loops(size, stride, padding):
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
    for using in SETS:
        output = max_pool(jnp.asarray(x), window=3, stride=stride, padding=padding, using=using)
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("using", SETS, ids=lambda using: using.name)
def test_max_pool_ignores_padding_if_all_values_are_negative(using):
    x = jnp.full((1, 5, 5, 1), -3.0)
    np.testing.assert_array_equal(max_pool(x, window=3, stride=2, using=using), np.full((1, 3, 3, 1), -3.0))


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

    @jax.jit
    def run_all(*arguments):
        norms = flax_batch_norm, *(using.batch_norm for using in SETS)
        return [run(norm, *arguments) for norm in norms]

    expected, *results = run_all(x, 1 + 0.1 * random(4, seed=1), random(4, seed=2))
    names = ("output", "mean", "variance", "gradient of x", "of the scale", "of the bias")
    for result in results:
        for name, ours, flaxs in zip(names, result, expected, strict=True):
            # Divided by sqrt(variance + epsilon), at least 1e-5 ** 0.5, and twice so in gradients: 1e-14 becomes 1e-9.
            np.testing.assert_allclose(ours, flaxs, rtol=1e-9, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("using", SETS, ids=lambda using: using.name)
@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_batch_norm_computes_narrow_types_in_float32(using, dtype, bound):
    x, scale, bias = 3 + random((2, 16, 16, 4)), 1 + 0.1 * random(4, seed=1), random(4, seed=2)
    x = np.asarray(jnp.asarray(x, dtype).astype(jnp.float64))  # what both see
    cotangent = np.asarray(jnp.asarray(random(x.shape, seed=9), dtype).astype(jnp.float64))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(dtype, parameters):
        arguments = jnp.asarray(x, dtype), jnp.asarray(scale, parameters), jnp.asarray(bias, parameters)
        (output, *statistics), pullback = jax.vjp(lambda *xs: using.batch_norm(*xs, 1e-5), *arguments)
        gradients = pullback((jnp.asarray(cotangent, dtype), *map(jnp.zeros_like, statistics)))
        return output, *statistics, *gradients

    narrow, wide = run(dtype, jnp.float32), run(jnp.float64, jnp.float64)
    assert [result.dtype for result in narrow] == [dtype, *[jnp.float32] * 2, dtype, *[jnp.float32] * 2]
    for ours, exact in zip(narrow, wide, strict=True):
        # bfloat16 rounds results to 8 bits; sums of 512 products in float32 lose a few of 24
        np.testing.assert_allclose(ours.astype(jnp.float64), exact, rtol=bound, atol=bound)


def test_symmetric_padding_keeps_strided_outputs_on_every_stride_th_pixel():
    x = jnp.asarray(random((1, 9, 12, 2)))
    kernel = jnp.asarray(random((3, 3, 2, 2), seed=1))
    dense, strided = (conv(x, kernel, using=ops.XLA, stride=stride) for stride in (1, 2))
    np.testing.assert_allclose(strided, dense[:, ::2, ::2], **TOLERANCE)


def test_padding_rejects_unknown_styles_and_even_windows():
    with pytest.raises(ValueError, match="'same' is not one of same_upper, symmetric"):
        ops.lax_padding("same", (3, 3))
    with pytest.raises(ValueError, match="odd windows"):
        ops.lax_padding("symmetric", (2, 2))


@pytest.mark.parametrize("using", SETS, ids=lambda using: using.name)
def test_operations_keep_bfloat16(using):
    x = jnp.ones((1, 5, 7, 2), jnp.bfloat16)
    outputs = jax.eval_shape(
        lambda x: [
            conv(x, jnp.ones((1, 1, 2, 3), jnp.bfloat16), using=using),
            depthwise_conv(x, jnp.ones((3, 3, 1, 2), jnp.bfloat16), using=using),
            max_pool(x, window=3, stride=2, using=using),
            resize(x, size=(9, 9), using=using),
            resize(x, size=(10, 14), using=using),
            resize(x, size=(9, 9), align_corners=True, using=using),
            using.add(x, x),
        ],
        x,
    )
    assert {output.dtype for output in outputs} == {jnp.dtype("bfloat16")}


def test_operations_are_selected_by_platform(monkeypatch):
    monkeypatch.delenv("DEEPLAB_JAX_OPS", raising=False)
    assert ops.select("cpu") is ops.select("cpu") is not ops.XLA
    assert [ops.select(platform) for platform in ("tpu", "gpu", "cuda")] == [ops.XLA] * 3
    assert [ops.select(platform, spatial=True) for platform in ("cpu", "tpu")] == [ops.SPATIAL] * 2
    assert len({ops.select("cpu"), ops.select("cpu"), ops.XLA, ops.SPATIAL}) == 3  # hashable, for jit's cache


def test_the_cpu_backend_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("DEEPLAB_JAX_OPS", "xla")
    assert ops.select("cpu") is ops.XLA
    monkeypatch.setenv("DEEPLAB_JAX_OPS", "fast")
    with pytest.raises(UserError, match="DEEPLAB_JAX_OPS=fast .* set it to xla or unset it"):
        ops.select("cpu")
