"""DeepLabV3Plus of segmentation_models.pytorch with a ResNet or MobileNetV2 encoder.

Source of the layout: segmentation-models-pytorch 0.6.0, `decoders/deeplabv3/decoder.py` and `encoders/_utils.py`. Other
than the paper, its separable convolutions have no BatchNorm inside, the pyramid's result passes one more of them before
it is enlarged and only one behind the join, corners are aligned, the unit whose stride is traded runs at the new rate
itself, and the rates are 12, 24, 36 at output stride 16 as at 8. Its encoders see images in ImageNet's normalization
if their users follow its documentation.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained.importers.torchvision import (
    LEFT_OUT,
    abridged,
    find_resnet,
    mobilenet_v2_table,
    resnet_table,
)
from deeplab_jax.pretrained.network import PretrainedNetwork, model_config, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from deeplab_jax.pretrained.translate import TORCH, translate

_CLASSIFIER = "segmentation_head.0"


def load(path: pathlib.Path) -> PretrainedNetwork:
    """The network in a file of weights.

    Output stride and atrous rates are not among the weights. They are taken from the `config.json` beside the file,
    which `save_pretrained` writes, and are smp's defaults (16; 12, 24, 36) if there is none.

    Raises:
      UserError: the file cannot be read, or holds another network.
    """
    config_path = path.with_name("config.json")
    if not config_path.is_file():
        return from_state_dict(read_torch_file(path))
    try:
        config = json.loads(config_path.read_text())
        kind = config["_model_class"]
        output_stride = int(config.get("encoder_output_stride", 16))
        atrous_rates = tuple(int(rate) for rate in config.get("decoder_atrous_rates", (12, 24, 36)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{config_path} is not what segmentation_models.pytorch's save_pretrained writes "
            f"({type(error).__name__}: {error}); move {path.name} to a folder of its own"
        ) from None
    if kind != "DeepLabV3Plus":
        raise UserError(f"{config_path} describes a {kind}; only DeepLabV3Plus is known here")
    return from_state_dict(read_torch_file(path), output_stride=output_stride, atrous_rates=atrous_rates)


def from_state_dict(
    foreign: Mapping[str, np.ndarray], *, output_stride: int = 16, atrous_rates: Sequence[int] = (12, 24, 36)
) -> PretrainedNetwork:
    """The network of a state dict.

    A network of one class, whose logit stands against 0, becomes one of two classes: the background has the logit 0.

    Args:
      foreign: of `DeepLabV3Plus` with the encoder `resnet18` to `resnet152` or `mobilenet_v2`.
      output_stride: its `encoder_output_stride`.
      atrous_rates: its `decoder_atrous_rates`.

    Raises:
      UserError: it is of another network.
    """
    if "decoder.block2.0.1.weight" not in foreign or f"{_CLASSIFIER}.weight" not in foreign:
        raise UserError(f"the file holds no DeepLabV3Plus of segmentation_models.pytorch; it has {abridged(foreign)}")
    if resnet := find_resnet(foreign, "encoder."):
        backbone, table = resnet, resnet_table(resnet, "encoder.")
    elif "encoder.features.18.0.weight" in foreign:
        backbone, table = "mobilenet_v2_full", mobilenet_v2_table("encoder.")
    else:
        raise UserError(
            "the file's encoder is not known here (resnet18 to resnet152, mobilenet_v2); "
            f"it has {abridged(name for name in foreign if name.startswith('encoder.'))}"
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
    num_classes = foreign[f"{_CLASSIFIER}.weight"].shape[0]
    label_set = voc_or_numbered_labels(num_classes)
    if num_classes == 1:
        names = (f"{_CLASSIFIER}.weight", f"{_CLASSIFIER}.bias")
        foreign = dict(foreign) | {name: np.concatenate([0 * foreign[name], foreign[name]]) for name in names}
        label_set = LabelSet.from_names(("background", "foreground"))
    variables, report = translate(
        foreign,
        table | _head_table(separable),
        variable_shapes(model, label_set.num_classes),
        TORCH,
        left_out=LEFT_OUT | {r"classification_head\..*": "the head that classifies whole images"},
    )
    if num_classes == 1:
        report.append("the network of one class became one of two: the background has the logit 0")
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
