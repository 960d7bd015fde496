"""Pretrained networks: presets, saved networks, training runs, the Hugging Face Hub, and files of other frameworks."""

from deeplab_jax.pretrained.bundle import save_pretrained
from deeplab_jax.pretrained.formats import FORMATS, Format, import_file, register_format
from deeplab_jax.pretrained.loading import (
    BACKBONE_FIELDS,
    DEFAULT_PRESET,
    from_pretrained,
    is_workdir,
    load,
    model_fields,
    preset_config,
    split_checkpoint,
)
from deeplab_jax.pretrained.merge import merge
from deeplab_jax.pretrained.network import PretrainedNetwork, average, check_finite
from deeplab_jax.pretrained.presets import Preset, list_presets
from deeplab_jax.pretrained.provenance import Provenance, Score
from deeplab_jax.pretrained.sharing import push_to_hub

__all__ = [
    "BACKBONE_FIELDS",
    "DEFAULT_PRESET",
    "FORMATS",
    "Format",
    "Preset",
    "PretrainedNetwork",
    "Provenance",
    "Score",
    "average",
    "check_finite",
    "from_pretrained",
    "import_file",
    "is_workdir",
    "list_presets",
    "load",
    "merge",
    "model_fields",
    "preset_config",
    "push_to_hub",
    "register_format",
    "save_pretrained",
    "split_checkpoint",
]
