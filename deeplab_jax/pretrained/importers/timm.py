"""ResNet, MobileNetV2 and Xception classification networks of timm, as backbones.

Source of the layouts: timm 1.0.31, `models/resnet.py` (names and shapes are torchvision's) and `models/efficientnet.py`
(MobileNetV2 of any width): symmetric padding, BatchNorm with epsilon 1e-5 and decay 0.9; `models/xception_aligned.py`
(Xception): the same with epsilon 1e-3. Variants with another stem, more blocks, groups or attention, or with norms
before the convolutions (`resnet50d`, `mobilenetv2_110d`, `resnext50_32x4d`, `xception65p`...) are refused.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.files import read_json
from deeplab_jax.models import BACKBONES
from deeplab_jax.models.backbones.mobilenet_v2 import STAGES
from deeplab_jax.models.backbones.xception import XCEPTIONS
from deeplab_jax.pretrained.importers.torchvision import abridge, find_resnet, find_width, load_backbone, resnet_table
from deeplab_jax.pretrained.network import PretrainedNetwork
from deeplab_jax.pretrained.readers.torch_file import read_torch_file


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads a backbone from a file of weights.

    The normalization of images is not part of the weights. It comes from the `config.json` that timm writes next to the
    file. Without one, Xception takes 127.5 for both, and other networks take ImageNet's mean and standard deviation:
    among the ResNet-18 to -152 and MobileNetV2 weights of timm 1.0.31, only `resnet34.ra4_e3600_r224_in1k` uses others.

    Raises:
      UserError: the file cannot be read or contains another network.
    """
    config_path = path.with_name("config.json")
    if not config_path.is_file():
        return from_state_dict(read_torch_file(path))
    try:
        config = read_json(config_path)["pretrained_cfg"]
        # Six digits: 255 * 0.406 is 103.53 and a rounding error.
        mean, std = (tuple(round(255 * float(value), 6) for value in config[key]) for key in ("mean", "std"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{config_path} is not a config of timm ({type(error).__name__}: {error}); "
            f"move {path.name} to a folder of its own"
        ) from None
    return from_state_dict(read_torch_file(path), input_mean=mean, input_std=std)


def from_state_dict(foreign: Mapping[str, np.ndarray], **fields: Any) -> PretrainedNetwork:
    """Converts a state dict to a backbone.

    Args:
      foreign: state dict of `resnet18` to `resnet152`, or of `mobilenetv2_050`, `_100`, `_140`..., or of
        `xception41`, `_65` or `_71`.
      **fields: other fields of `config.model`.

    Raises:
      UserError: the state dict is of another network.
    """
    if "conv1.weight" in foreign and (resnet := find_resnet(foreign)):
        return load_backbone(foreign, resnet_table(resnet), backbone=resnet, **fields)
    if "conv_stem.weight" in foreign and "blocks.0.0.conv_dw.weight" in foreign:
        table = _mobilenet_v2_table()
        width = find_width(foreign, table)
        return load_backbone(foreign, table, backbone="mobilenet_v2_full", width_multiplier=width, **fields)
    if "blocks.0.stack.conv1.bn_dw.weight" in foreign and (xception := _find_xception(foreign)):
        fields = {"backbone_norm_epsilon": 1e-3, "input_mean": (127.5,) * 3, "input_std": (127.5,) * 3} | fields
        return load_backbone(foreign, _xception_table(xception), backbone=xception, **fields)
    raise UserError(
        "the file is not a supported network of timm (resnet18 to resnet152, mobilenetv2_050 to _140, xception41 to "
        "_71); "
        f"it has {abridge(foreign)}"
    )


def _mobilenet_v2_table() -> dict[str, str]:
    table = {
        "backbone/stem_conv": "conv_stem",
        "backbone/stem_norm": "bn1",
        "backbone/final_conv": "conv_head",
        "backbone/final_norm": "bn2",
    }
    for number, stage in enumerate(STAGES, 1):
        names = ("conv_pw", "conv_dw", "conv_pwl") if stage.expansion != 1 else ("conv_dw", "conv_pw")
        layers = ("expand", "depthwise", "project")[-len(names) :]
        for unit in range(stage.units):
            ours, theirs = f"backbone/stage{number}_block{unit + 1}", f"blocks.{number - 1}.{unit}"
            for i, (layer, name) in enumerate(zip(layers, names, strict=True), 1):
                table[f"{ours}/{layer}_conv"] = f"{theirs}.{name}"
                table[f"{ours}/{layer}_norm"] = f"{theirs}.bn{i}"
    return table


def _find_xception(names: Iterable[str]) -> str | None:
    """Returns the Xception with the number of units of a state dict, None without a match."""
    units = {match[1] for name in names if (match := re.match(r"blocks\.(\d+)\.stack\.", name))}
    for xception in XCEPTIONS:
        if len(units) == len(_xception_units(xception)):
            return xception
    return None


def _xception_units(xception: str) -> list[str]:
    return [name for block in BACKBONES[xception].arguments["blocks"] for name in block.unit_names()]


def _xception_table(xception: str) -> dict[str, str]:
    table = {}
    for i in (1, 2):
        table |= {f"backbone/stem_conv{i}": f"stem.{i - 1}.conv", f"backbone/stem_norm{i}": f"stem.{i - 1}.bn"}
    for number, name in enumerate(_xception_units(xception)):
        ours, theirs = f"backbone/{name}", f"blocks.{number}"
        table |= {
            f"{ours}/shortcut_conv": f"{theirs}.shortcut.conv",
            f"{ours}/shortcut_norm": f"{theirs}.shortcut.bn",
        }
        for i in (1, 2, 3):
            table |= {
                f"{ours}/separable{i}/depthwise_conv": f"{theirs}.stack.conv{i}.conv_dw",
                f"{ours}/separable{i}/depthwise_norm": f"{theirs}.stack.conv{i}.bn_dw",
                f"{ours}/separable{i}/conv": f"{theirs}.stack.conv{i}.conv_pw",
                f"{ours}/separable{i}/norm": f"{theirs}.stack.conv{i}.bn_pw",
            }
    return table
