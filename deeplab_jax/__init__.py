"""DeepLabv3+ semantic segmentation in JAX and Flax linen."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from deeplab_jax.config import load_config
    from deeplab_jax.evaluation.evaluator import evaluate
    from deeplab_jax.inference.predictor import Prediction, Predictor
    from deeplab_jax.models import DeepLabV3Plus
    from deeplab_jax.pretrained import from_preset
    from deeplab_jax.visualization import plot_segmentation_mask_gallery

# Where each public name lives. JAX and matplotlib take seconds to import: a name brings its module when it is first
# asked for, so that `import deeplab_jax` and `deeplab-jax --help` stay fast. The function `train` is not among them:
# `deeplab_jax.training.loop` is its module, and one name cannot be both. Import it as `from deeplab_jax.training.loop import train`.
_EXPORTS = {
    "DeepLabV3Plus": "deeplab_jax.models",
    "Prediction": "deeplab_jax.inference.predictor",
    "Predictor": "deeplab_jax.inference.predictor",
    "evaluate": "deeplab_jax.evaluation.evaluator",
    "from_preset": "deeplab_jax.pretrained",
    "load_config": "deeplab_jax.config",
    "plot_segmentation_mask_gallery": "deeplab_jax.visualization",
}

__all__ = [
    "DeepLabV3Plus",
    "Prediction",
    "Predictor",
    "evaluate",
    "from_preset",
    "load_config",
    "plot_segmentation_mask_gallery",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
