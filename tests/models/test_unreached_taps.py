"""Taps of atrous kernels that meet no image of the training's size."""

import jax
import numpy as np

from deeplab_jax.models import build_model
from deeplab_jax.models.unreached_taps import met_taps_of_kernels, zero_unmet_taps
from tests.models.test_deeplab import CLASSES, evaluate, random_images, random_variables, small_model_config

MODEL = build_model(small_model_config(atrous_rates=(1, 3), aspp_separable=True), CLASSES)
SIZE = (48, 48)  # 3x3 features at output stride 16


def kernels(params):
    return {name: params["aspp"][name]["depthwise_conv"]["kernel"] for name in ("branch_atrous1", "branch_atrous2")}


def test_only_taps_of_rates_as_large_as_the_features_meet_nothing():
    unmet = {path: taps for path, taps in met_taps_of_kernels(MODEL, SIZE).items() if not taps.all()}
    assert list(unmet) == [("aspp", "branch_atrous2", "depthwise_conv", "kernel")]
    np.testing.assert_array_equal(*unmet.values(), [[False] * 3, [False, True, False], [False] * 3])
    assert all(taps.all() for taps in met_taps_of_kernels(MODEL, (64, 64)).values())


def test_zeros_in_unmet_taps_change_larger_images_alone():
    variables = random_variables(MODEL)
    zeroed = variables | {"params": zero_unmet_taps(variables["params"], MODEL, SIZE)}
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
    zeroed = zero_unmet_taps(params, MODEL, SIZE)
    changed = jax.tree.map(lambda one, other: not np.array_equal(one, other), params, zeroed)
    assert sum(jax.tree.leaves(changed)) == 1
