"""DeepLabv3+ semantic segmentation in JAX and Flax linen."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from deeplab_jax.config import load_config
    from deeplab_jax.data import register_dataset, register_transform
    from deeplab_jax.errors import UserError
    from deeplab_jax.evaluation.evaluator import evaluate
    from deeplab_jax.inference import Prediction, Predictor
    from deeplab_jax.labels import LabelSet
    from deeplab_jax.models import DeepLabV3Plus, register_backbone
    from deeplab_jax.pretrained import from_pretrained, list_presets, push_to_hub, save_pretrained
    from deeplab_jax.training.loop import train
    from deeplab_jax.visualization import plot_segmentation_mask_gallery

# The module of each public name. JAX and matplotlib take seconds to import, so a module is imported when one of its
# names is first used: `import deeplab_jax` and `deeplab-jax --help` stay fast.
_MODULES = {
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

__all__ = [
    "DeepLabV3Plus",
    "LabelSet",
    "Prediction",
    "Predictor",
    "UserError",
    "evaluate",
    "from_pretrained",
    "list_presets",
    "load_config",
    "plot_segmentation_mask_gallery",
    "push_to_hub",
    "register_backbone",
    "register_dataset",
    "register_transform",
    "save_pretrained",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
