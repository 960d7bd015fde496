"""Weights of torchvision: ResNet, MobileNetV2 and MobileNetV3 as backbones, DeepLabv3 and LR-ASPP.

Source of the layouts: torchvision 0.29, `models/resnet.py`, `mobilenetv2.py`, `mobilenetv3.py` and
`segmentation/{deeplabv3,lraspp,fcn}.py`.

- DeepLabv3 on ResNet runs at output stride 8 (`replace_stride_with_dilation`) with rates 12, 24, 36: 6, 12, 18
  at stride 16. On MobileNetV3 it runs at stride 16, with the same 12, 24, 36. A 3x3 convolution follows ASPP.
- MobileNetV3 has BatchNorm with epsilon 1e-3 and momentum 0.01, a decay of 0.99. In segmentation networks
  (`dilated=True`), the last strided unit already runs at rate 2. `low` and `aux` features of stride 8 come from the
  first unit of this stride.
"""

import pathlib
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models import BACKBONES
from deeplab_jax.models.backbones.inverted_residual import scaled_features
from deeplab_jax.models.backbones.mobilenet_v2 import STAGES
from deeplab_jax.models.backbones.mobilenet_v3 import VARIANTS
from deeplab_jax.pretrained.network import PretrainedNetwork, model_config, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from deeplab_jax.pretrained.translate import TORCH, translate

RESNETS = ("resnet18_v1", "resnet34_v1", "resnet50_v1", "resnet101_v1", "resnet152_v1")
SKIPPED = {
    r".*\.num_batches_tracked": "batch counters",
    r"(fc|head\.fc|classifier|classifier\.[013])\.(weight|bias)": "ImageNet classifier",
}
_MOBILENET_V3_FIELDS = {"backbone_norm_epsilon": 1e-3, "backbone_norm_decay": 0.99}
_DILATED_FIELDS = {"output_stride": 16, "spread_converted_units": True}


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads a network from a file of torchvision, see `from_state_dict`.

    Raises:
      UserError: the file cannot be read or contains another network.
    """
    return from_state_dict(read_torch_file(path))


def from_state_dict(foreign: Mapping[str, np.ndarray]) -> PretrainedNetwork:
    """Converts a state dict to a network.

    Args:
      foreign: state dict of `resnet18` to `resnet152`, `mobilenet_v2` of any width, `mobilenet_v3_large` or
        `mobilenet_v3_small`, which become backbones; or of `deeplabv3_resnet50`, `deeplabv3_resnet101`,
        `deeplabv3_mobilenet_v3_large` or `lraspp_mobilenet_v3_large`, with or without an auxiliary classifier.

    Raises:
      UserError: the state dict is of another network.
    """
    if "classifier.4.weight" in foreign and (resnet := find_resnet(foreign, "backbone.")):
        fields = {"backbone": resnet, "output_stride": 8, "atrous_rates": (6, 12, 18)}
        return _load_deeplab(foreign, resnet_table(resnet, "backbone."), "stage3", fields)
    if resnet := find_resnet(foreign):
        return load_backbone(foreign, resnet_table(resnet), backbone=resnet)
    if variant := _find_mobilenet_v3(foreign, "backbone."):
        fields = {"backbone": f"mobilenet_v3_{variant}"} | _MOBILENET_V3_FIELDS | _DILATED_FIELDS
        table = mobilenet_v3_table(variant, "backbone.")
        if "classifier.low_classifier.weight" in foreign:
            return _load_lraspp(foreign, table, fields)
        if "classifier.4.weight" in foreign:
            return _load_deeplab(foreign, table, "mid_level_features", fields | {"atrous_rates": (12, 24, 36)})
    if variant := _find_mobilenet_v3(foreign, "features."):
        table = mobilenet_v3_table(variant, "features.")
        return load_backbone(foreign, table, backbone=f"mobilenet_v3_{variant}", **_MOBILENET_V3_FIELDS)
    if "features.0.0.weight" in foreign and "features.18.0.weight" in foreign:
        width = find_width(foreign, mobilenet_v2_table())
        return load_backbone(foreign, mobilenet_v2_table(), backbone="mobilenet_v2_full", width_multiplier=width)
    raise UserError(
        "the file is not a supported network of torchvision (resnet18 to resnet152, mobilenet_v2, mobilenet_v3_large, "
        "mobilenet_v3_small, deeplabv3_resnet50, deeplabv3_resnet101, deeplabv3_mobilenet_v3_large, "
        f"lraspp_mobilenet_v3_large); it has {abridge(foreign)}"
    )


def _load_deeplab(
    foreign: Mapping[str, np.ndarray], backbone: Mapping[str, str], auxiliary_features: str, fields: Mapping[str, Any]
) -> PretrainedNetwork:
    """Converts DeepLabv3.

    Args:
      foreign: the state dict.
      backbone: the foreign name of each layer of the backbone.
      auxiliary_features: the endpoint that the auxiliary classifier takes.
      fields: fields of `config.model` that depend on the backbone.
    """
    table = {
        **backbone,
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
    fields = {"atrous_rates_stride": 16, "aspp_dropout": 0.5, "decoder": "torchvision"} | dict(fields)
    if "aux_classifier.0.weight" in foreign:
        table |= {
            "auxiliary/refine/conv": "aux_classifier.0",
            "auxiliary/refine/norm": "aux_classifier.1",
            "auxiliary/classifier": "aux_classifier.4",
        }
        fields["auxiliary_channels"] = foreign["aux_classifier.0.weight"].shape[0]
        fields["auxiliary_features"] = auxiliary_features
    return _load_segmentation(foreign, table, fields, foreign["classifier.4.weight"].shape[0])


def _load_lraspp(
    foreign: Mapping[str, np.ndarray], backbone: Mapping[str, str], fields: Mapping[str, Any]
) -> PretrainedNetwork:
    table = {
        **backbone,
        "aspp/projection/conv": "classifier.cbr.0",
        "aspp/projection/norm": "classifier.cbr.1",
        "aspp/gate_conv": "classifier.scale.1",
        "classifier/features": "classifier.high_classifier",
        "classifier/mid_level": "classifier.low_classifier",
    }
    fields = {"head": "lraspp", "aspp_channels": foreign["classifier.cbr.0.weight"].shape[0]} | dict(fields)
    return _load_segmentation(foreign, table, fields, foreign["classifier.low_classifier.weight"].shape[0])


def _load_segmentation(
    foreign: Mapping[str, np.ndarray], table: Mapping[str, str], fields: Mapping[str, Any], num_classes: int
) -> PretrainedNetwork:
    model = model_config(**fields)
    variables, report = translate(foreign, table, variable_shapes(model, num_classes), TORCH, skipped=SKIPPED)
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
    block = 0
    for number, stage in enumerate(STAGES, 1):
        for unit in range(stage.units):
            block += 1
            ours, theirs = f"backbone/stage{number}_block{unit + 1}", f"{prefix}features.{block}.conv"
            position = 0
            if stage.expansion != 1:
                table |= {f"{ours}/expand_conv": f"{theirs}.0.0", f"{ours}/expand_norm": f"{theirs}.0.1"}
                position = 1
            table[f"{ours}/depthwise_conv"] = f"{theirs}.{position}.0"
            table[f"{ours}/depthwise_norm"] = f"{theirs}.{position}.1"
            table[f"{ours}/project_conv"] = f"{theirs}.{position + 1}"
            table[f"{ours}/project_norm"] = f"{theirs}.{position + 2}"
    return table


def _find_mobilenet_v3(names: Container[str], prefix: str) -> str | None:
    """Returns the variant whose last convolution a state dict has, None without a match."""
    if f"{prefix}1.block.0.0.weight" not in names:
        return None
    return next((name for name in ("large", "small") if f"{prefix}{_count_units(name) + 1}.0.weight" in names), None)


def _count_units(variant: str) -> int:
    stages, _ = VARIANTS[variant]
    return sum(stage.units for stage in stages)


def mobilenet_v3_table(variant: str, prefix: str) -> dict[str, str]:
    """Returns torchvision's name of each layer of MobileNetV3, `large` or `small`."""
    last = f"{prefix}{_count_units(variant) + 1}"
    table = {
        "backbone/stem_conv": f"{prefix}0.0",
        "backbone/stem_norm": f"{prefix}0.1",
        "backbone/final_conv": f"{last}.0",
        "backbone/final_norm": f"{last}.1",
    }
    block, channels = 0, 16
    for number, stage in enumerate(VARIANTS[variant][0], 1):
        for unit, expanded in enumerate(stage.expanded, 1):
            block += 1
            ours, theirs = f"backbone/stage{number}_block{unit}", f"{prefix}{block}.block"
            parts = ["depthwise", "project"] if expanded == channels else ["expand", "depthwise", "project"]
            if stage.squeeze:
                parts.insert(-1, "squeeze_excite")
            for position, part in enumerate(parts):
                if part == "squeeze_excite":
                    table[f"{ours}/{part}/squeeze_conv"] = f"{theirs}.{position}.fc1"
                    table[f"{ours}/{part}/excite_conv"] = f"{theirs}.{position}.fc2"
                else:
                    table[f"{ours}/{part}_conv"] = f"{theirs}.{position}.0"
                    table[f"{ours}/{part}_norm"] = f"{theirs}.{position}.1"
            channels = stage.features
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
