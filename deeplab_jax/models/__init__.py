"""Flax linen modules of the network, and how a config becomes one."""

from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.models.build import (
    abstract_variables,
    build_for_mesh,
    build_model,
    initial_variables,
    random_variables,
)
from deeplab_jax.models.deeplab import PARTS, DeepLabV3Plus

__all__ = [
    "BACKBONES",
    "PARTS",
    "DeepLabV3Plus",
    "abstract_variables",
    "build_for_mesh",
    "build_model",
    "initial_variables",
    "random_variables",
]
