"""Taps of atrous kernels that no image of the training size reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax import ops
from deeplab_jax.models import build_model, initial_variables
from deeplab_jax.models.unreached_taps import reached_taps, reached_taps_of_kernels, zero_unreached_taps
from tests.models.support import CLASSES, evaluate, random_images, random_variables, small_model_config

MODEL = build_model(small_model_config(atrous_rates=(1, 3), aspp_separable=True), CLASSES)
SIZE = (48, 48)  # 3x3 features at output stride 16


def kernels(params):
    return {name: params["aspp"][name]["depthwise_conv"]["kernel"] for name in ("branch_atrous1", "branch_atrous2")}


def test_only_taps_of_rates_as_large_as_the_features_are_unreached():
    unreached = {path: taps for path, taps in reached_taps_of_kernels(MODEL, SIZE).items() if not taps.all()}
    assert list(unreached) == [("aspp", "branch_atrous2", "depthwise_conv", "kernel")]
    np.testing.assert_array_equal(*unreached.values(), [[False] * 3, [False, True, False], [False] * 3])
    assert all(taps.all() for taps in reached_taps_of_kernels(MODEL, (64, 64)).values())


def test_zeros_in_unreached_taps_change_only_larger_images():
    variables = random_variables(MODEL)
    zeroed = variables | {"params": zero_unreached_taps(variables["params"], MODEL, SIZE)}
    before, after = kernels(variables["params"]), kernels(zeroed["params"])
    np.testing.assert_array_equal(after["branch_atrous1"], before["branch_atrous1"])
    np.testing.assert_array_equal(after["branch_atrous2"][1, 1], before["branch_atrous2"][1, 1])
    assert np.count_nonzero(after["branch_atrous2"]) == np.count_nonzero(before["branch_atrous2"][1, 1])
    for size, equal in ((48, True), (64, False)):
        images = random_images(2, size, size, 3)
        (logits, _), (zeroed_logits, _) = (evaluate(MODEL, values, images) for values in (variables, zeroed))
        # The taps are left out of the sums or multiply padding: equal to the bit.
        assert np.array_equal(logits, zeroed_logits) == equal


def test_nothing_else_of_the_parameters_changes():
    params = random_variables(MODEL)["params"]
    zeroed = zero_unreached_taps(params, MODEL, SIZE)
    changed = jax.tree.map(lambda one, other: not np.array_equal(one, other), params, zeroed)
    assert sum(jax.tree.leaves(changed)) == 1


@pytest.mark.parametrize("wanted", [False, True])
def test_initial_values_of_unreached_taps_follow_the_model_field(wanted):
    model = MODEL.clone(zero_unreached_taps=wanted)
    plain, params = (
        jax.jit(lambda size=size: initial_variables(model, jax.random.PRNGKey(0), image_size=size))()["params"]
        for size in (None, SIZE)
    )
    if wanted:
        plain = zero_unreached_taps(plain, model, SIZE)
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    assert np.count_nonzero(kernels(params)["branch_atrous2"][0, 0]) == (0 if wanted else 192)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    window=st.sampled_from([1, 3]),
    stride=st.integers(1, 3),
    rate=st.integers(1, 14) | st.tuples(st.integers(1, 14), st.integers(1, 14)),
    padding=st.sampled_from(ops.PADDINGS),
)
def test_reached_taps_are_those_that_an_image_of_ones_reaches(size, window, stride, rate, padding):
    def summed(kernel):
        pads = ops.lax_padding(padding, (window, window), rate=rate)
        return jnp.sum(
            jax.lax.conv_general_dilated(
                jnp.ones((1, *size, 1)), kernel, (stride, stride), pads,
                rhs_dilation=np.broadcast_to(rate, 2), dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        )  # fmt: skip

    gradient = jax.grad(summed)(jnp.ones((window, window, 1, 1)))[..., 0, 0]
    reached = reached_taps(size, (window, window), stride=stride, rate=rate, padding=padding)
    np.testing.assert_array_equal(reached, gradient > 0)
