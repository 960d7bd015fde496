"""What `import deeplab_jax` offers."""

import importlib
from types import ModuleType

import pytest

import deeplab_jax


def test_public_names_are_the_things_of_their_modules():
    homes = {
        "DeepLabV3Plus": "models",
        "Prediction": "predict",
        "Predictor": "predict",
        "evaluate": "evaluation.evaluator",
        "from_preset": "pretrained",
        "load_config": "config",
        "plot_segmentation_mask_gallery": "visualize",
    }
    assert set(deeplab_jax.__all__) == set(homes)
    assert set(homes) <= set(dir(deeplab_jax))
    for name, home in homes.items():
        value = getattr(deeplab_jax, name)
        # A submodule of the same name would take its place as soon as anything imports it.
        assert not isinstance(value, ModuleType)
        assert value is getattr(importlib.import_module(f"deeplab_jax.{home}"), name)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="DeepLabV4"):
        _ = deeplab_jax.DeepLabV4
