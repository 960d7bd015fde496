"""Networks of segmentation_models.pytorch: DeepLabV3Plus with a ResNet or MobileNetV2 encoder, and Segformer with MiT.

Source of the layout: segmentation-models-pytorch 0.6.0, `decoders/deeplabv3/decoder.py`, `encoders/_utils.py`,
`decoders/segformer/decoder.py` and `encoders/mix_transformer.py`. Encoders expect ImageNet's normalization, as its
documentation says.

Differences of DeepLabV3Plus from the paper: separable convolutions have no inner BatchNorm; one of them follows ASPP
and only one follows the concatenation; resizing aligns corners; a unit whose stride becomes a rate already runs at the
new rate; and the rates are 12, 24, 36 at output strides 8 and 16 alike. Segformer enlarges its logits with aligned
corners, which the original does not.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.errors import UserError
from deeplab_jax.files import read_json
from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained.importers import mix_transformer
from deeplab_jax.pretrained.importers.torchvision import (
    SKIPPED,
    abridge,
    find_resnet,
    mobilenet_v2_table,
    resnet_table,
)
from deeplab_jax.pretrained.network import PretrainedNetwork, model_config, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from deeplab_jax.pretrained.translate import TORCH, translate, with_background

_CLASSIFIER = "segmentation_head.0"


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads a network from a file of weights.

    The output stride and the atrous rates of DeepLabV3Plus are not part of the weights. They come from the
    `config.json` next to the file, which smp's `save_pretrained` writes. Without one, smp's defaults are assumed (16;
    12, 24, 36).

    Raises:
      UserError: the file cannot be read or contains another network.
    """
    config_path = path.with_name("config.json")
    if not config_path.is_file():
        return from_state_dict(read_torch_file(path))
    try:
        config = read_json(config_path)
        kind = config["_model_class"]
        output_stride = int(config.get("encoder_output_stride", 16))
        atrous_rates = tuple(int(rate) for rate in config.get("decoder_atrous_rates", (12, 24, 36)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{config_path} is not a config of segmentation_models.pytorch ({type(error).__name__}: {error}); "
            f"move {path.name} to a folder of its own"
        ) from None
    if kind not in ("DeepLabV3Plus", "Segformer"):
        raise UserError(f"{config_path} describes a {kind}; only DeepLabV3Plus and Segformer are supported")
    if kind == "Segformer" and (scale := config.get("upsampling", 4)) != 4:
        raise UserError(f"{config_path} has upsampling={scale}; only 4 is supported")
    return from_state_dict(read_torch_file(path), output_stride=output_stride, atrous_rates=atrous_rates)


def from_state_dict(
    foreign: Mapping[str, np.ndarray], *, output_stride: int = 16, atrous_rates: Sequence[int] = (12, 24, 36)
) -> PretrainedNetwork:
    """Converts a state dict to a network.

    A network of one class becomes one of two classes: the background has the logit 0.

    Args:
      foreign: state dict of `DeepLabV3Plus` with the encoder `resnet18` to `resnet152` or `mobilenet_v2`, or of
        `Segformer` with the encoder `mit_b0` to `mit_b5`.
      output_stride: the `encoder_output_stride` of DeepLabV3Plus.
      atrous_rates: its `decoder_atrous_rates`.

    Raises:
      UserError: the state dict is of another network.
    """
    if "decoder.mlp_stage.0.linear.weight" in foreign and f"{_CLASSIFIER}.weight" in foreign:
        return _load_segformer(foreign)
    if "decoder.block2.0.1.weight" not in foreign or f"{_CLASSIFIER}.weight" not in foreign:
        raise UserError(
            f"the file is not a DeepLabV3Plus or Segformer of segmentation_models.pytorch; it has {abridge(foreign)}"
        )
    if resnet := find_resnet(foreign, "encoder."):
        backbone, table = resnet, resnet_table(resnet, "encoder.")
    elif "encoder.features.18.0.weight" in foreign:
        backbone, table = "mobilenet_v2_full", mobilenet_v2_table("encoder.")
    else:
        raise UserError(
            "the encoder is not supported (resnet18 to resnet152, mobilenet_v2 are); "
            f"it has {abridge(name for name in foreign if name.startswith('encoder.'))}"
        )
    channels = foreign["decoder.block2.0.1.weight"].shape[0]
    separable = "decoder.aspp.0.convs.1.0.1.weight" in foreign
    model = model_config(
        backbone=backbone,
        output_stride=output_stride,
        spread_converted_units=True,
        atrous_rates=tuple(atrous_rates),
        atrous_rates_stride=output_stride,
        aspp_channels=channels,
        aspp_separable=separable,
        aspp_dropout=0.5,
        separable_norm=False,
        decoder="smp",
        decoder_channels=channels,
        align_corners=True,
    )
    return _convert(foreign, model, table | _head_table(separable))


def _load_segformer(foreign: Mapping[str, np.ndarray]) -> PretrainedNetwork:
    kernels = [f"encoder.patch_embed{n}.proj.weight" for n in mix_transformer.STAGES]
    if not all(name in foreign for name in kernels):
        raise UserError(
            "the encoder of this Segformer is not supported (mit_b0 to mit_b5 are); "
            f"it has {abridge(name for name in foreign if name.startswith('encoder.'))}"
        )
    blocks = mix_transformer.count_blocks(foreign, r"^encoder\.block(?P<stage>\d)\.(?P<block>\d+)\.")
    backbone = mix_transformer.find_backbone([foreign[name].shape[0] for name in kernels], blocks)
    # The decoder lists the stages from the last to the first.
    table = mix_transformer.layer_table(backbone, mix_transformer.NVLABS, "encoder.") | {
        f"decoder/projection{n}": f"decoder.mlp_stage.{4 - n}.linear" for n in mix_transformer.STAGES
    }
    table |= {
        "decoder/fuse": "decoder.fuse_stage.0",
        "decoder/norm": "decoder.fuse_stage.1",
        "classifier": _CLASSIFIER,
    }
    channels = foreign["decoder.fuse_stage.0.weight"].shape[0]
    model = mix_transformer.segformer_config(
        backbone, decoder_channels=channels, classifier_dropout=0.0, align_corners=True
    )
    arrays, packed = mix_transformer.split_keys_and_values(foreign)
    network = _convert(arrays, model, table)
    return dataclasses.replace(network, report=[*network.report, *packed])


def _convert(foreign: Mapping[str, np.ndarray], model: ConfigDict, table: Mapping[str, str]) -> PretrainedNetwork:
    num_classes = foreign[f"{_CLASSIFIER}.weight"].shape[0]
    label_set = voc_or_numbered_labels(num_classes)
    if num_classes == 1:
        foreign = with_background(foreign, _CLASSIFIER)
        label_set = LabelSet.from_names(("background", "foreground"))
    variables, report = translate(
        foreign,
        table,
        variable_shapes(model, label_set.num_classes),
        TORCH,
        skipped=SKIPPED | {r"classification_head\..*": "image classification head"},
    )
    if num_classes == 1:
        report.append("one class became two: the background has the logit 0")
    return PretrainedNetwork(model, variables, label_set, report=report)


def _head_table(separable: bool) -> dict[str, str]:
    aspp = "decoder.aspp.0"
    table = {
        "aspp/branch_1x1/conv": f"{aspp}.convs.0.0",
        "aspp/branch_1x1/norm": f"{aspp}.convs.0.1",
        "aspp/branch_pooling/conv": f"{aspp}.convs.4.1",
        "aspp/branch_pooling/norm": f"{aspp}.convs.4.2",
        "aspp/projection": f"{aspp}.project.0",
        "aspp/projection_norm": f"{aspp}.project.1",
        "decoder/encoder_refine/depthwise_conv": "decoder.aspp.1.0",
        "decoder/encoder_refine/conv": "decoder.aspp.1.1",
        "decoder/encoder_refine/norm": "decoder.aspp.2",
        "decoder/low_level/conv": "decoder.block1.0",
        "decoder/low_level/norm": "decoder.block1.1",
        "decoder/refine1/depthwise_conv": "decoder.block2.0.0",
        "decoder/refine1/conv": "decoder.block2.0.1",
        "decoder/refine1/norm": "decoder.block2.1",
        "classifier": _CLASSIFIER,
    }
    for i in (1, 2, 3):
        table[f"aspp/branch_atrous{i}/depthwise_conv"] = f"{aspp}.convs.{i}.0.0"
        table[f"aspp/branch_atrous{i}/conv"] = f"{aspp}.convs.{i}.0.1" if separable else f"{aspp}.convs.{i}.0"
        table[f"aspp/branch_atrous{i}/norm"] = f"{aspp}.convs.{i}.1"
    return table
