"""Strict conversion of foreign arrays: names, axes, and an account of every array."""

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.translate import KERAS, SLIM, TORCH, translate

SHAPES = {
    "params/backbone/stem_conv/kernel": (3, 5, 2, 4),
    "params/backbone/stem_norm/scale": (4,),
    "params/backbone/stem_norm/bias": (4,),
    "batch_stats/backbone/stem_norm/mean": (4,),
    "batch_stats/backbone/stem_norm/var": (4,),
    "params/backbone/depthwise_conv/kernel": (3, 5, 1, 4),
    "params/classifier/bias": (7,),
}
MODULES = {
    "backbone/stem_conv": "conv1",
    "backbone/stem_norm": "bn1",
    "backbone/depthwise_conv": "dw",
    "classifier": "head.0",
}


def torch_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "conv1.weight": (4, 2, 3, 5),
        "bn1.weight": (4,),
        "bn1.bias": (4,),
        "bn1.running_mean": (4,),
        "bn1.running_var": (4,),
        "dw.weight": (4, 1, 3, 5),
        "head.0.bias": (7,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_arrays_are_renamed_and_transposed():
    foreign = torch_arrays()
    variables, report = translate(foreign, MODULES, SHAPES, TORCH)
    kernel = variables["params"]["backbone"]["stem_conv"]["kernel"]
    # One number, at the same place of the kernel on both sides.
    assert kernel[2, 4, 1, 3] == foreign["conv1.weight"][3, 1, 2, 4]
    assert variables["params"]["backbone"]["depthwise_conv"]["kernel"][2, 4, 0, 3] == foreign["dw.weight"][3, 0, 2, 4]
    np.testing.assert_array_equal(variables["params"]["backbone"]["stem_norm"]["scale"], foreign["bn1.weight"])
    np.testing.assert_array_equal(variables["params"]["backbone"]["stem_norm"]["bias"], foreign["bn1.bias"])
    np.testing.assert_array_equal(
        variables["batch_stats"]["backbone"]["stem_norm"]["mean"], foreign["bn1.running_mean"]
    )
    np.testing.assert_array_equal(variables["batch_stats"]["backbone"]["stem_norm"]["var"], foreign["bn1.running_var"])
    np.testing.assert_array_equal(variables["params"]["classifier"]["bias"], foreign["head.0.bias"])
    assert report == ["7 arrays imported, 2 with reordered axes; 0 missing, 0 unused"]


def test_each_framework_has_its_own_names_and_axes():
    shapes = {
        path: SHAPES[path] for path in ("params/backbone/stem_conv/kernel", "params/backbone/depthwise_conv/kernel")
    }
    kernel, depthwise = np.arange(120.0).reshape(3, 5, 2, 4), np.arange(60.0).reshape(3, 5, 4, 1)
    for convention, names in ((KERAS, ("kernel", "kernel")), (SLIM, ("weights", "depthwise_weights"))):
        foreign = {f"conv1/{names[0]}": kernel, f"dw/{names[1]}": depthwise}
        variables, _ = translate(foreign, MODULES, shapes, convention)
        np.testing.assert_array_equal(variables["params"]["backbone"]["stem_conv"]["kernel"], kernel)
        ours = variables["params"]["backbone"]["depthwise_conv"]["kernel"]
        np.testing.assert_array_equal(ours[:, :, 0], depthwise[..., 0])


def test_skipped_arrays_are_reported_with_the_reason():
    foreign = torch_arrays() | {f"aux.{i}.weight": np.zeros(1) for i in range(7)} | {"fc.weight": np.zeros(1)}
    skipped = {r"aux\..*": "a second classifier", r"fc\.(weight|bias)": "ImageNet's classes"}
    _, report = translate(foreign, MODULES, SHAPES, TORCH, skipped=skipped)
    assert report[1:] == [
        "7 skipped (a second classifier): aux.0.weight, aux.1.weight, aux.2.weight, aux.3.weight ... aux.6.weight",
        "1 skipped (ImageNet's classes): fc.weight",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: arrays.pop("bn1.running_var"),
            "bn1.running_var is missing in the file .for batch_stats/backbone",
        ),
        (lambda arrays: arrays.update({"aux.weight": np.zeros(2)}), "aux.weight is unused$"),
        (
            lambda arrays: arrays.update({"conv1.weight": np.zeros((4, 2, 5, 3))}),
            r"conv1.weight has shape \(4, 2, 5, 3\), which does not fit params/backbone/stem_conv/kernel of shape",
        ),
        (lambda arrays: arrays.update({"bn1.bias": np.zeros((4, 1))}), r"bn1.bias has shape \(4, 1\)"),
    ],
)
def test_missing_unused_and_misshapen_arrays_are_errors(change, message):
    arrays = torch_arrays()
    change(arrays)
    with pytest.raises(UserError, match=f"^the file does not fit the network: .*{message}"):
        translate(arrays, MODULES, SHAPES, TORCH)


def test_a_layer_without_a_foreign_name_is_an_error():
    modules = {path: name for path, name in MODULES.items() if path != "classifier"}
    with pytest.raises(UserError, match="params/classifier/bias has no foreign name; head.0.bias is unused$"):
        translate(torch_arrays(), modules, SHAPES, TORCH)
