"""Weights of torchvision: ResNet and MobileNetV2 classification networks as backbones, and DeepLabv3.

Source of the layouts: torchvision 0.29, `models/resnet.py`, `mobilenetv2.py` and `segmentation/deeplabv3.py`. Its
DeepLabv3 runs at output stride 8 (`replace_stride_with_dilation`) with rates 12, 24, 36, which are 6, 12, 18 at
stride 16, and has a 3x3 convolution between ASPP and the classifier.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models import BACKBONES
from deeplab_jax.models.backbones.inverted_residual import scaled_features
from deeplab_jax.models.backbones.mobilenet_v2 import STAGES
from deeplab_jax.pretrained.network import PretrainedNetwork, model_config, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from deeplab_jax.pretrained.translate import TORCH, translate

RESNETS = ("resnet18_v1", "resnet34_v1", "resnet50_v1", "resnet101_v1", "resnet152_v1")
SKIPPED = {
    r".*\.num_batches_tracked": "batch counters",
    r"(fc|head\.fc|classifier|classifier\.1)\.(weight|bias)": "ImageNet classifier",
}


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads a network from a file of torchvision, see `from_state_dict`.

    Raises:
      UserError: the file cannot be read or contains another network.
    """
    return from_state_dict(read_torch_file(path))


def from_state_dict(foreign: Mapping[str, np.ndarray]) -> PretrainedNetwork:
    """Converts a state dict to a network.

    Args:
      foreign: state dict of `resnet18` to `resnet152` or `mobilenet_v2` of any width, which become backbones, or of
        `deeplabv3_resnet50` or `deeplabv3_resnet101`.

    Raises:
      UserError: the state dict is of another network.
    """
    if "classifier.4.weight" in foreign and (resnet := find_resnet(foreign, "backbone.")):
        return _load_deeplab(foreign, resnet)
    if resnet := find_resnet(foreign):
        return load_backbone(foreign, resnet_table(resnet), backbone=resnet)
    if "features.0.0.weight" in foreign and "features.18.0.weight" in foreign:
        width = find_width(foreign, mobilenet_v2_table())
        return load_backbone(foreign, mobilenet_v2_table(), backbone="mobilenet_v2_full", width_multiplier=width)
    raise UserError(
        "the file is not a supported network of torchvision (resnet18 to resnet152, mobilenet_v2, "
        f"deeplabv3_resnet50, deeplabv3_resnet101); it has {abridge(foreign)}"
    )


def _load_deeplab(foreign: Mapping[str, np.ndarray], resnet: str) -> PretrainedNetwork:
    model = model_config(
        backbone=resnet,
        output_stride=8,
        atrous_rates=(6, 12, 18),
        atrous_rates_stride=16,
        aspp_dropout=0.5,
        decoder="torchvision",
    )
    table = resnet_table(resnet, "backbone.") | {
        "aspp/branch_1x1/conv": "classifier.0.convs.0.0",
        "aspp/branch_1x1/norm": "classifier.0.convs.0.1",
        "aspp/branch_pooling/conv": "classifier.0.convs.4.1",
        "aspp/branch_pooling/norm": "classifier.0.convs.4.2",
        "aspp/projection": "classifier.0.project.0",
        "aspp/projection_norm": "classifier.0.project.1",
        "decoder/refine1/conv": "classifier.1",
        "decoder/refine1/norm": "classifier.2",
        "classifier": "classifier.4",
    }
    for i in (1, 2, 3):
        table[f"aspp/branch_atrous{i}/conv"] = f"classifier.0.convs.{i}.0"
        table[f"aspp/branch_atrous{i}/norm"] = f"classifier.0.convs.{i}.1"
    num_classes = foreign["classifier.4.weight"].shape[0]
    variables, report = translate(
        foreign,
        table,
        variable_shapes(model, num_classes),
        TORCH,
        skipped=SKIPPED | {r"aux_classifier\..*": "auxiliary classifier"},
    )
    return PretrainedNetwork(model, variables, voc_or_numbered_labels(num_classes), report=report)


def load_backbone(foreign: Mapping[str, np.ndarray], table: Mapping[str, str], **fields) -> PretrainedNetwork:
    """Converts the state dict of a classification network to a backbone.

    Args:
      foreign: the state dict.
      table: the foreign name of each of our layers.
      **fields: fields of `config.model`.

    Raises:
      UserError: an array is missing, unused, or has another shape.
    """
    model = model_config(**fields)
    variables, report = translate(foreign, table, variable_shapes(model, None), TORCH, skipped=SKIPPED)
    return PretrainedNetwork(model, variables, label_set=None, report=report)


def find_resnet(names: Iterable[str], prefix: str = "") -> str | None:
    """Returns the backbone with the block type and the number of blocks of a state dict, None without a match."""
    names = set(names)
    pattern = re.compile(re.escape(prefix) + r"layer([1-4])\.(\d+)\.conv1\.weight")
    found = {match.groups() for name in names if (match := pattern.fullmatch(name))}
    blocks = tuple(sum(stage == str(number) for stage, _ in found) for number in (1, 2, 3, 4))
    block = "bottleneck" if f"{prefix}layer1.0.conv3.weight" in names else "basic"
    for name in RESNETS:
        options = BACKBONES[name].arguments
        if (options["blocks"], options.get("block", "bottleneck")) == (blocks, block):
            return name
    return None


def resnet_table(backbone: str, prefix: str = "") -> dict[str, str]:
    """Returns torchvision's name of each layer of a ResNet v1."""
    table = {"backbone/stem_conv": f"{prefix}conv1", "backbone/stem_norm": f"{prefix}bn1"}
    for stage, count in enumerate(BACKBONES[backbone].arguments["blocks"], 1):
        for block in range(count):
            ours, theirs = f"backbone/stage{stage}_block{block + 1}", f"{prefix}layer{stage}.{block}"
            for i in (1, 2, 3):
                table[f"{ours}/conv{i}"] = f"{theirs}.conv{i}"
                table[f"{ours}/norm{i}"] = f"{theirs}.bn{i}"
            table[f"{ours}/shortcut_conv"] = f"{theirs}.downsample.0"
            table[f"{ours}/shortcut_norm"] = f"{theirs}.downsample.1"
    return table


def mobilenet_v2_table(prefix: str = "") -> dict[str, str]:
    """Returns torchvision's name of each layer of MobileNetV2."""
    table = {
        "backbone/stem_conv": f"{prefix}features.0.0",
        "backbone/stem_norm": f"{prefix}features.0.1",
        "backbone/final_conv": f"{prefix}features.18.0",
        "backbone/final_norm": f"{prefix}features.18.1",
    }
    number = 0
    for stage, (_, units, _, expansion, _) in enumerate(STAGES, 1):
        for unit in range(units):
            number += 1
            ours, theirs = f"backbone/stage{stage}_block{unit + 1}", f"{prefix}features.{number}.conv"
            position = 0
            if expansion != 1:
                table |= {f"{ours}/expand_conv": f"{theirs}.0.0", f"{ours}/expand_norm": f"{theirs}.0.1"}
                position = 1
            table[f"{ours}/depthwise_conv"] = f"{theirs}.{position}.0"
            table[f"{ours}/depthwise_norm"] = f"{theirs}.{position}.1"
            table[f"{ours}/project_conv"] = f"{theirs}.{position + 1}"
            table[f"{ours}/project_norm"] = f"{theirs}.{position + 2}"
    return table


def find_width(foreign: Mapping[str, np.ndarray], table: Mapping[str, str]) -> float:
    """Returns the width multiplier of a MobileNetV2: the roundest number that explains the features of its stages.

    Raises:
      UserError: no multiplier does.
    """
    kernels = [f"{table[f'backbone/stage{stage}_block1/project_conv']}.weight" for stage in range(1, len(STAGES) + 1)]
    found = [foreign[name].shape[0] if name in foreign else 0 for name in kernels]
    for percent in sorted(range(10, 201), key=lambda percent: (percent % 10 != 0, percent % 5 != 0)):
        if found == [scaled_features(stage.features, percent / 100) for stage in STAGES]:
            return percent / 100
    raise UserError(f"the file does not match MobileNetV2 of any width: its stages have {found} features")


def abridge(names: Iterable[str]) -> str:
    """Returns the first few names, for error messages."""
    return f"{', '.join(list(names)[:3])}..."
