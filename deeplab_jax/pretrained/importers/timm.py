"""Classification networks of timm as backbones: ResNet and MobileNetV2.

Source of the layouts: timm 1.0.31, `models/resnet.py` (names and shapes are torchvision's) and `models/efficientnet.py`
(MobileNetV2 of any width): symmetric padding, BatchNorm with epsilon 1e-5 and decay 0.9. Variants with another stem,
more blocks, groups or attention (`resnet50d`, `mobilenetv2_110d`, `resnext50_32x4d`...) are other networks, refused.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones.mobilenet_v2 import STAGES
from deeplab_jax.pretrained.importers.torchvision import abridged, find_resnet, find_width, load_backbone, resnet_table
from deeplab_jax.pretrained.network import PretrainedNetwork
from deeplab_jax.pretrained.readers.torch_file import read_torch_file


def load(path: pathlib.Path) -> PretrainedNetwork:
    """The backbone in a file of weights.

    How images are normalized is not among the weights. It is taken from the `config.json` beside the file, which timm
    writes with it, and is ImageNet's mean and deviation if there is none; of the ResNet-18 to -152 and MobileNetV2 that
    timm 1.0.31 lists, only `resnet34.ra4_e3600_r224_in1k` has another.

    Raises:
      UserError: the file cannot be read, or holds another network.
    """
    config_path = path.with_name("config.json")
    if not config_path.is_file():
        return from_state_dict(read_torch_file(path))
    try:
        config = json.loads(config_path.read_text())["pretrained_cfg"]
        # Six digits: 255 * 0.406 is 103.53 and a rounding error.
        mean, std = (tuple(round(255 * float(value), 6) for value in config[key]) for key in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{config_path} is not what timm writes beside its weights ({type(error).__name__}: {error}); "
            f"move {path.name} to a folder of its own"
        ) from None
    return from_state_dict(read_torch_file(path), input_mean=mean, input_std=std)


def from_state_dict(foreign: Mapping[str, np.ndarray], **fields: Any) -> PretrainedNetwork:
    """The backbone of a state dict.

    Args:
      foreign: of `resnet18` to `resnet152`, or of `mobilenetv2_050`, `_100`, `_140`...
      **fields: of `config.model`.

    Raises:
      UserError: it is of another network.
    """
    if "conv1.weight" in foreign and (resnet := find_resnet(foreign)):
        return load_backbone(foreign, resnet_table(resnet), backbone=resnet, **fields)
    if "conv_stem.weight" in foreign and "blocks.0.0.conv_dw.weight" in foreign:
        table = _mobilenet_v2_table()
        width = find_width(foreign, table)
        return load_backbone(foreign, table, backbone="mobilenet_v2_full", width_multiplier=width, **fields)
    raise UserError(
        "the file holds no network of timm that is known here (resnet18 to resnet152, mobilenetv2_050 to _140); "
        f"it has {abridged(foreign)}"
    )


def _mobilenet_v2_table() -> dict[str, str]:
    table = {
        "backbone/stem_conv": "conv_stem",
        "backbone/stem_norm": "bn1",
        "backbone/final_conv": "conv_head",
        "backbone/final_norm": "bn2",
    }
    for stage, (_, units, _, expansion, _) in enumerate(STAGES, 1):
        names = ("conv_pw", "conv_dw", "conv_pwl") if expansion != 1 else ("conv_dw", "conv_pw")
        layers = ("expand", "depthwise", "project")[-len(names) :]
        for unit in range(units):
            ours, theirs = f"backbone/stage{stage}_block{unit + 1}", f"blocks.{stage - 1}.{unit}"
            for i, (layer, name) in enumerate(zip(layers, names, strict=True), 1):
                table[f"{ours}/{layer}_conv"] = f"{theirs}.{name}"
                table[f"{ours}/{layer}_norm"] = f"{theirs}.bn{i}"
    return table
