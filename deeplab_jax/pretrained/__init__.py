"""Networks with parameters from elsewhere: presets by name, folders, other runs, and files of other frameworks."""

from deeplab_jax.pretrained.loading import (
    BACKBONE_FIELDS,
    DEFAULT_PRESET,
    FORMATS,
    from_preset,
    import_file,
    load,
    model_fields,
    preset_config,
)
from deeplab_jax.pretrained.merge import merge
from deeplab_jax.pretrained.network import PretrainedNetwork, average

__all__ = [
    "BACKBONE_FIELDS",
    "DEFAULT_PRESET",
    "FORMATS",
    "PretrainedNetwork",
    "average",
    "from_preset",
    "import_file",
    "load",
    "merge",
    "model_fields",
    "preset_config",
]
