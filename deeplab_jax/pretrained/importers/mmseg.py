"""MMSegmentation's DeepLabv3 and DeepLabv3+ on ResNet-18, ResNet-50 and ResNet-101, and its ImageNet backbones.

Source of the layouts: mmsegmentation 1.2.2, `models/backbones/resnet.py`, `models/utils/res_layer.py`,
`models/decode_heads/aspp_head.py`, `sep_aspp_head.py` and `fcn_head.py`. Differences from the papers: the convolution
that joins ASPP's branches is 3x3; the pooled branch comes first; ASPP has 512 channels (128 on ResNet-18); the second
convolution of ResNet-18's blocks is not atrous; multi-grid rates are absolute, not multiples of the stage's rate; and
whole channels are dropped before the classifier.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import BACKBONES
from deeplab_jax.pretrained.importers.torchvision import SKIPPED, abridge, find_resnet, load_backbone, resnet_table
from deeplab_jax.pretrained.network import PretrainedNetwork, model_config, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers.python_config import lookup, read_assignments
from deeplab_jax.pretrained.readers.torch_file import read_torch_checkpoint
from deeplab_jax.pretrained.translate import TORCH, translate

_SKIPPED = SKIPPED | {r"ema_.*": "copies of mmcv's EMA hook; the weights themselves are imported"}
_DEFAULT_RATES = (12, 24, 36)  # at output stride 8


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads a network from a checkpoint of MMSegmentation, or a backbone from a checkpoint of ImageNet training.

    The output stride, the rates and the alignment of corners are not part of the weights. They come from the config
    that training stores in the checkpoint (`meta`), as do the class names and the palette. Without one, output stride 8
    and rates 12, 24, 36 are assumed, and the report says so.

    mmengine's EMA hook stores the averaged weights as `state_dict`, so these are the ones that are imported.

    Raises:
      UserError: the file cannot be read or contains another network.
    """
    foreign, entries = read_torch_checkpoint(path)
    meta = entries.get("meta") if type(entries.get("meta")) is dict else {}
    return from_state_dict(foreign, meta)


def from_state_dict(foreign: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> PretrainedNetwork:
    """Converts a state dict to a network.

    Args:
      foreign: state dict of `EncoderDecoder` with an `ASPPHead` or `DepthwiseSeparableASPPHead` and, if there is one,
        an auxiliary `FCNHead` of one convolution; or of `ResNetV1c` with or without its ImageNet classifier.
      meta: `meta` of the checkpoint: the config as text under `cfg` (mmengine) or `config` (mmcv), and class names and
        palette under `dataset_meta` or as `CLASSES` and `PALETTE`.

    Raises:
      UserError: the state dict is of another network.
    """
    meta = meta or {}
    if "decode_head.conv_seg.weight" not in foreign:
        if "stem.0.weight" in foreign and (backbone := _find_backbone(foreign, "")):
            return load_backbone(foreign, _backbone_table(backbone, ""), backbone=backbone)
        raise UserError(f"the file has no decode_head.conv_seg of MMSegmentation; it has {abridge(foreign)}")
    if "decode_head.bottleneck.conv.weight" not in foreign or "decode_head.aspp_modules.0.conv.weight" not in foreign:
        raise UserError("the decode head is not an ASPPHead or DepthwiseSeparableASPPHead; only these are supported")
    if (backbone := _find_backbone(foreign, "backbone.")) is None:
        raise UserError(
            "the backbone is not supported (ResNet and ResNetV1c of depth 18, 50 and 101 are); "
            f"it has {abridge(name for name in foreign if name.startswith('backbone.'))}"
        )
    text = next((meta[name] for name in ("cfg", "config") if type(meta.get(name)) is str), "")
    config = read_assignments(text)
    network = lookup(config, "model")
    fields, report = _config_fields(network, backbone, len(_atrous_branches(foreign)))
    fields |= _input_fields(config)
    head_fields, table = _head(foreign)
    auxiliary_fields, auxiliary_table = _auxiliary_head(foreign, backbone)
    model = model_config(backbone=backbone, **fields, **head_fields, **auxiliary_fields)

    num_classes = foreign["decode_head.conv_seg.weight"].shape[0]
    if num_classes == 1:
        raise UserError("the classifier has one channel, for a sigmoid; only classifiers with a softmax are supported")
    # The pooled branch comes first there and last here.
    joined = np.roll(foreign["decode_head.bottleneck.conv.weight"], -head_fields["aspp_channels"], axis=1)
    variables, lines = translate(
        {**foreign, "decode_head.bottleneck.conv.weight": joined},
        _backbone_table(backbone, "backbone.") | table | auxiliary_table,
        variable_shapes(model, num_classes),
        TORCH,
        skipped=_SKIPPED,
    )
    return PretrainedNetwork(model, variables, _label_set(meta, num_classes), report=lines + report)


def _find_backbone(foreign: Mapping[str, np.ndarray], prefix: str) -> str | None:
    """Returns the name of our backbone, None if there is none."""
    resnet = find_resnet(foreign, prefix)
    if resnet is None or any(name.startswith(f"{prefix}layer2.0.downsample.2.") for name in foreign):  # ResNetV1d
        return None
    if f"{prefix}stem.0.weight" in foreign:
        resnet = f"{resnet}c"
    elif f"{resnet}b" in BACKBONES:
        resnet = f"{resnet}b"
    return resnet if resnet in BACKBONES else None


def _backbone_table(backbone: str, prefix: str) -> dict[str, str]:
    table = resnet_table(backbone, prefix)
    for i in (1, 2, 3):
        table[f"backbone/stem_conv{i}"] = f"{prefix}stem.{3 * i - 3}"
        table[f"backbone/stem_norm{i}"] = f"{prefix}stem.{3 * i - 2}"
    return table


def _atrous_branches(foreign: Mapping[str, np.ndarray]) -> list[int]:
    prefix = "decode_head.aspp_modules."
    found = {int(name.removeprefix(prefix).partition(".")[0]) for name in foreign if name.startswith(prefix)}
    return sorted(found - {0})


def _head(foreign: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns fields of `config.model` and the foreign name of each layer of ASPP, decoder and classifier."""
    head = "decode_head"
    separable = f"{head}.aspp_modules.1.depthwise_conv.conv.weight" in foreign
    table = {
        "aspp/projection": f"{head}.bottleneck.conv",
        "aspp/projection_norm": f"{head}.bottleneck.bn",
        "classifier": f"{head}.conv_seg",
    }
    table |= _block("aspp/branch_1x1", f"{head}.aspp_modules.0") | _block("aspp/branch_pooling", f"{head}.image_pool.1")
    for i in _atrous_branches(foreign):
        table |= _block(f"aspp/branch_atrous{i}", f"{head}.aspp_modules.{i}", separable=separable)
    channels, _, size, _ = foreign[f"{head}.bottleneck.conv.weight"].shape
    fields = {
        "aspp_channels": channels,
        "aspp_separable": separable,
        "aspp_projection_size": size,
        "decoder": "none",
        "classifier_dropout": 0.1,
    }
    if f"{head}.c1_bottleneck.conv.weight" not in foreign:
        return fields, table
    table |= _block("decoder/low_level", f"{head}.c1_bottleneck")
    for i in (1, 2):
        table |= _block(f"decoder/refine{i}", f"{head}.sep_bottleneck.{i - 1}", separable=True)
    return fields | {
        "decoder": "separable",
        "decoder_channels": channels,
        "low_level_channels": foreign[f"{head}.c1_bottleneck.conv.weight"].shape[0],
    }, table


def _auxiliary_head(foreign: Mapping[str, np.ndarray], backbone: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns fields of `config.model` and the foreign name of each layer of the auxiliary head."""
    head = "auxiliary_head"
    if f"{head}.conv_seg.weight" not in foreign:
        return {}, {}
    kernel = foreign.get(f"{head}.convs.0.conv.weight")
    if kernel is None or f"{head}.convs.1.conv.weight" in foreign or f"{head}.conv_cat.conv.weight" in foreign:
        raise UserError("the auxiliary head is not an FCNHead of one convolution; only this is supported")
    expansion = 1 if BACKBONES[backbone].arguments.get("block") == "basic" else 4
    stage = {expansion * 64 * 2**stage: stage + 1 for stage in range(4)}.get(kernel.shape[1])
    fields = {"auxiliary_channels": kernel.shape[0], "auxiliary_features": f"stage{stage}", "auxiliary_dropout": 0.1}
    return fields, _block("auxiliary/refine", f"{head}.convs.0") | {"auxiliary/classifier": f"{head}.conv_seg"}


def _block(ours: str, theirs: str, *, separable: bool = False) -> dict[str, str]:
    """Returns the foreign names of a `ConvNormAct`."""
    if not separable:
        return {f"{ours}/conv": f"{theirs}.conv", f"{ours}/norm": f"{theirs}.bn"}
    return {
        f"{ours}/depthwise_conv": f"{theirs}.depthwise_conv.conv",
        f"{ours}/depthwise_norm": f"{theirs}.depthwise_conv.bn",
    } | _block(ours, f"{theirs}.pointwise_conv")


# ---- The config in a checkpoint ----


def _config_fields(network: Any, backbone: str, branches: int) -> tuple[dict[str, Any], list[str]]:
    """Returns the fields of `config.model` that the weights do not show, and lines of a report."""
    if not isinstance(network, Mapping):
        rates = _DEFAULT_RATES if branches == 3 else tuple(12 * (i + 1) for i in range(branches))
        fields = {"output_stride": 8, "atrous_rates": rates, "atrous_rates_stride": 8}
        return fields, [f"assumed, since the file contains no config: output stride 8 with rates {rates}"]
    style = lookup(network, "backbone", "style") or "pytorch"
    if style != "pytorch":
        raise UserError(
            f"the backbone has the style {style!r}, strides in 1x1 convolutions; only 'pytorch' is supported"
        )
    strides = _integers(lookup(network, "backbone", "strides"), (1, 2, 2, 2))
    dilations = _integers(lookup(network, "backbone", "dilations"), (1, 1, 1, 1))
    output_stride = 4 * int(np.prod(strides))
    converted = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1, 1, 1, 1)}
    if converted.get(output_stride) != dilations or strides[0] != 1:
        raise UserError(f"the backbone has strides {strides} and dilations {dilations}, which are not supported")
    first, *rates = _integers(lookup(network, "decode_head", "dilations"), (1, 6, 12, 18))
    if first != 1 or len(rates) != branches:
        raise UserError(f"ASPP has the dilations {(first, *rates)}, which do not match its weights")
    return {
        "output_stride": output_stride,
        "atrous_rates": tuple(rates),
        "atrous_rates_stride": output_stride,
        "spread_converted_units": lookup(network, "backbone", "contract_dilation") is not True,
        "multi_grid": _multi_grid(lookup(network, "backbone", "multi_grid"), dilations[3], backbone),
        "align_corners": lookup(network, "decode_head", "align_corners") is True,
    }, [f"from the config in the file: output stride {output_stride} with rates {tuple(rates)}"]


def _multi_grid(value: Any, rate: int, backbone: str) -> tuple[int, ...]:
    """Returns our multi-grid, which multiplies the rates of units, for the absolute rates of MMSegmentation."""
    absolute = _integers(value, ())
    if not absolute:
        return ()
    units = BACKBONES[backbone].arguments["blocks"][-1]
    planned = (max(1, rate // 2), *(rate,) * (units - 1))  # the first unit runs at the rate before the stage
    if len(absolute) != units or any(wanted % own for wanted, own in zip(absolute, planned, strict=True)):
        raise UserError(f"the backbone's multi_grid={absolute} at dilation {rate} is not supported")
    return tuple(wanted // own for wanted, own in zip(absolute, planned, strict=True))


def _input_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `input_mean` and `input_std`; ImageNet's, our default, without a config."""
    source = lookup(config, "model", "data_preprocessor") or lookup(config, "img_norm_cfg") or {}
    order = lookup(source, "bgr_to_rgb") if "bgr_to_rgb" in source else lookup(source, "to_rgb")
    if order is False:
        raise UserError("the network takes images in the order blue, green, red; only red, green, blue is supported")
    values = {"input_mean": lookup(source, "mean"), "input_std": lookup(source, "std")}
    return {
        name: tuple(map(float, value))
        for name, value in values.items()
        if isinstance(value, list | tuple) and all(type(number) in (int, float) for number in value)
    }


def _integers(value: Any, default: Sequence[int]) -> tuple[int, ...]:
    if value is None:
        return tuple(default)
    if not isinstance(value, list | tuple) or not all(type(number) is int and 0 < number < 1000 for number in value):
        raise UserError(f"the config in the file has {value!r:.60} where integers are expected")
    return tuple(value)


def _label_set(meta: Mapping[str, Any], num_classes: int) -> LabelSet:
    """Returns the classes of a checkpoint; numbered ones if it does not name them."""
    source = meta.get("dataset_meta") if type(meta.get("dataset_meta")) is dict else {}
    names = source.get("classes", meta.get("CLASSES"))
    palette = source.get("palette", meta.get("PALETTE"))
    if not isinstance(names, list | tuple) or len(names) != num_classes:
        return voc_or_numbered_labels(num_classes)
    try:
        if isinstance(palette, list | tuple) and len(palette) == num_classes:
            return LabelSet.from_json(names, [list(color) for color in palette])
        return LabelSet.from_json(names, [list(color) for color in LabelSet.from_names(tuple(names)).palette])
    except (ValueError, TypeError) as error:
        raise UserError(f"the class names or colors in the file are not valid: {error}") from None
