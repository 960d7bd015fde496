"""What `import deeplab_jax` offers, and what it costs."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import deeplab_jax


def brought_by(modules: str, heavy: tuple[str, ...]) -> list[str]:
    """Which of the heavy modules an import brings, in a process of its own."""
    code = f"import sys, {modules}; print(*(name for name in {heavy} if name in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_import_brings_nothing_heavy():
    heavy = ("jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "matplotlib", "cv2", "numpy")
    assert brought_by("deeplab_jax", heavy) == []


def test_predicting_brings_nothing_that_only_training_needs():
    heavy = ("optax", "orbax.checkpoint", "grain", "tensorflow_datasets", "matplotlib")
    assert brought_by("deeplab_jax.cli, deeplab_jax.predict, deeplab_jax.run_files", heavy) == []
    assert brought_by("deeplab_jax.train", heavy) == ["optax", "orbax.checkpoint"]  # so it would have been found


def test_public_names_are_the_things_of_their_modules():
    homes = {
        "DeepLabV3Plus": "models",
        "Prediction": "predict",
        "Predictor": "predict",
        "evaluate_workdir": "evaluate",
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
