"""Networks as Flax linen modules, and functions that build one from a config."""

from deeplab_jax.models.atrous import Unit, plan_units
from deeplab_jax.models.backbones import BACKBONES, BackboneSpec, register_backbone
from deeplab_jax.models.build import (
    HEADS,
    abstract_variables,
    build_for_mesh,
    build_model,
    initial_variables,
    initializer_options,
    jit_initializer,
    random_variables,
)
from deeplab_jax.models.deeplab import DeepLabV3Plus
from deeplab_jax.models.fold import fold_batch_norm
from deeplab_jax.models.layers import Layers
from deeplab_jax.models.lraspp import LRASPP
from deeplab_jax.models.network import PARTS, SegmentationNetwork
from deeplab_jax.models.segformer import SegFormer

__all__ = [
    "BACKBONES",
    "HEADS",
    "LRASPP",
    "PARTS",
    "BackboneSpec",
    "DeepLabV3Plus",
    "Layers",
    "SegFormer",
    "SegmentationNetwork",
    "Unit",
    "abstract_variables",
    "build_for_mesh",
    "build_model",
    "fold_batch_norm",
    "initial_variables",
    "initializer_options",
    "jit_initializer",
    "plan_units",
    "random_variables",
    "register_backbone",
]
