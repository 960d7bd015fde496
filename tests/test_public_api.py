"""The names that `import deeplab_jax` provides."""

import importlib
from types import ModuleType

import pytest

import deeplab_jax

PACKAGES = {
    "DeepLabV3Plus": "models",
    "LabelSet": "labels",
    "Prediction": "inference",
    "Predictor": "inference",
    "UserError": "errors",
    "evaluate": "evaluation.evaluator",
    "from_pretrained": "pretrained",
    "list_presets": "pretrained",
    "load_config": "config",
    "plot_segmentation_mask_gallery": "visualization",
    "push_to_hub": "pretrained",
    "register_backbone": "models",
    "register_dataset": "data",
    "register_transform": "data",
    "save_pretrained": "pretrained",
    "train": "training.loop",
}


def test_the_public_names_are_complete():
    assert set(deeplab_jax.__all__) == set(PACKAGES)
    assert set(PACKAGES) <= set(dir(deeplab_jax))


@pytest.mark.parametrize("name", PACKAGES)
def test_a_public_name_is_documented_and_comes_from_its_package(name):
    value = getattr(deeplab_jax, name)
    assert value.__doc__
    # A submodule of the same name would replace it once anything imports the submodule.
    assert not isinstance(value, ModuleType)
    assert value is getattr(importlib.import_module(f"deeplab_jax.{PACKAGES[name]}"), name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'deeplab_jax' has no attribute 'Predicter'"):
        deeplab_jax.Predicter  # noqa: B018
