"""MobileNetV2, ResNet-beta and Xception networks of research/deeplab, from TensorFlow checkpoints.

Facts about the originals, from tensorflow/models:

- `research/deeplab/core/feature_extractor.py`: images are scaled to [-1, 1]; BatchNorm has decay 0.95 and epsilon 1e-5
  in ResNet, and decay 0.9997 and epsilon 1e-3 in Xception; the low-level features of ResNet are
  `block1/unit_2/bottleneck_v1/conv3`, those of MobileNetV2 the depthwise output of the second unit at stride 4, which
  our decoder does not support.
- `research/slim/nets/mobilenet/mobilenet.py` and `mobilenet_v2.py`: BatchNorm has decay 0.997 and slim's default
  epsilon 0.001, convolutions use SAME padding, and ReLU6 follows expansions and depthwise convolutions.
- `research/deeplab/core/resnet_v1_beta.py` and `xception.py`: strided convolutions pad symmetrically (slim's
  `conv2d_same`).
- `research/deeplab/core/dense_prediction_cell.py`: a cell in the place of ASPP is in the scope `meta_architecture`.
- `research/deeplab/datasets/data_generator.py`: networks for ADE20K have 151 classes, of which class 0 is ignored.
- `research/deeplab/model.py`: BatchNorm of ASPP and decoder has decay 0.9997 and epsilon 1e-5; branches are
  concatenated in the order image pooling, 1x1, rates; dropout after the projection is 0.1; resizing aligns corners.
"""

import pathlib
import re
from collections.abc import Mapping

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.labels import ADE20K, CITYSCAPES, LabelSet
from deeplab_jax.models import BACKBONES
from deeplab_jax.models.backbones.mobilenet_v2 import STAGES
from deeplab_jax.models.backbones.xception import XCEPTIONS
from deeplab_jax.models.dense_prediction_cell import BRANCHES
from deeplab_jax.pretrained.importers import tf_mobilenet_v3
from deeplab_jax.pretrained.network import PretrainedNetwork, model_config, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers import tf_checkpoint
from deeplab_jax.pretrained.translate import SLIM, translate

_XCEPTIONS = {name.replace("xception", "xception_"): name for name in XCEPTIONS}
_RESNET_UNITS = {"resnet_v1_50": (3, 4, 6, 3), "resnet_v1_101": (3, 4, 23, 3)}

# Values of eval.py and the training commands of research/deeplab; checkpoints do not contain them.
_RATES = (6, 12, 18)
_IMAGE_SIZES = {21: (513, 513), 19: (1025, 2049)}  # Pascal VOC and Cityscapes, by the number of classes
_ADE20K_LOGITS = 151

_SKIPPED = {
    r".*/(Momentum|Adam|Adam_1|RMSProp|RMSProp_1)|beta[12]_power": "optimizer state",
    r".*/ExponentialMovingAverage": "moving averages; the variables themselves are imported",
    r"global_step": "training step",
}
_IMAGENET_CLASSIFIER = {r"(MobilenetV2/Logits|(resnet_v1|xception)_\d+/logits)/.*": "ImageNet classifier"}
_FINAL_CONV = {r"MobilenetV2/Conv_1/.*": "convolution after the features that research/deeplab uses"}


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads a network from a checkpoint, or a backbone if the checkpoint has no segmentation head.

    Networks with 21, 19 and 151 classes get the class names of Pascal VOC, Cityscapes and ADE20K. Class 0 of ADE20K
    stands for unlabeled pixels, which training ignored: it is dropped, and 150 classes remain.

    ResNet's max-pooling uses SAME padding. It equals our symmetric padding for images of 16 k + 1 pixels per side, as
    research/deeplab uses them; other sizes give other values along the borders.

    Args:
      path: checkpoint prefix, `.index` file, folder or archive, see `tf_checkpoint.read`.

    Raises:
      UserError: the checkpoint is damaged or contains another network.
    """
    return from_variables(tf_checkpoint.read(path))


def from_variables(foreign: Mapping[str, np.ndarray]) -> PretrainedNetwork:
    """Converts the variables of a checkpoint, by name, to a network; see `load`."""
    scopes = {name.split("/")[0] for name in foreign}
    if tf_mobilenet_v3.SCOPE in scopes:
        return tf_mobilenet_v3.from_variables(foreign, skipped=_SKIPPED)
    if "MobilenetV2" in scopes:
        fields, modules, skipped = _mobilenet_v2(foreign)
    elif scope := next(iter(scopes & _XCEPTIONS.keys()), None):
        fields, modules, skipped = *_xception(scope), {}
    else:
        fields, modules, skipped = *_resnet_v1_beta(foreign, scopes), {}
    report, num_classes = [], None
    if "logits/semantic/weights" in foreign:
        if _features(foreign, "logits/semantic") == _ADE20K_LOGITS:
            foreign = {**foreign} | {
                name: foreign[name][..., 1:] for name in ("logits/semantic/weights", "logits/semantic/biases")
            }
            report.append("class 0 of 151, which ADE20K's training ignored, was dropped")
        num_classes = _features(foreign, "logits/semantic")
        head_fields, head_modules = _head(foreign)
        if head_fields["decoder"] != "none" and "MobilenetV2" in scopes:
            raise UserError("a decoder on MobileNetV2 uses depthwise features, which are not supported")
        fields, modules = fields | head_fields, modules | head_modules
        if fields.get("image_pooling"):
            # The pooled branch comes first there and last here.
            rows = np.roll(foreign["concat_projection/weights"], -fields["aspp_channels"], axis=2)
            foreign = {**foreign, "concat_projection/weights": rows}
        if fields.get("atrous_rates"):
            report.append(f"assumed, not in the file: rates {_RATES} at stride 16")
    else:
        skipped |= _IMAGENET_CLASSIFIER
    model = model_config(align_corners=True, input_mean=(127.5,) * 3, input_std=(127.5,) * 3, **fields)
    variables, lines = translate(
        foreign, modules, variable_shapes(model, num_classes), SLIM, skipped=_SKIPPED | skipped
    )
    label_set = None if num_classes is None else _label_set(num_classes)
    return PretrainedNetwork(
        model=model,
        variables=variables,
        label_set=label_set,
        image_size=_IMAGE_SIZES.get(num_classes),
        report=lines + report,
    )


def _features(foreign: Mapping[str, np.ndarray], layer: str) -> int:
    """Returns the number of output features of a convolution."""
    kernel = foreign.get(f"{layer}/weights")
    if kernel is None or kernel.ndim != 4:
        raise UserError(f"the checkpoint has no kernel {layer}/weights; expected a network of research/deeplab")
    return kernel.shape[-1]


def _label_set(num_classes: int) -> LabelSet:
    known = {labels.num_classes: labels for labels in (CITYSCAPES, ADE20K)}
    return known.get(num_classes) or voc_or_numbered_labels(num_classes)


def _mobilenet_v2(foreign: Mapping[str, np.ndarray]) -> tuple[dict, dict[str, str], dict[str, str]]:
    """Returns fields of `config.model`, the foreign name of each layer, and the names to skip."""
    width = _features(foreign, "MobilenetV2/expanded_conv_16/project") / STAGES[-1].features
    modules = _conv_and_norm("backbone/stem", "MobilenetV2/Conv")
    units = [f"stage{number}_block{i + 1}" for number, stage in enumerate(STAGES, 1) for i in range(stage.units)]
    for number, unit in enumerate(units):
        scope = f"MobilenetV2/expanded_conv_{number}" if number else "MobilenetV2/expanded_conv"
        for part in ("expand", "depthwise", "project"):
            modules |= _conv_and_norm(f"backbone/{unit}/{part}", f"{scope}/{part}")
    fields = {
        "backbone": "mobilenet_v2",
        "width_multiplier": width,
        "padding": "same_upper",
        "backbone_norm_epsilon": 1e-3,
        "backbone_norm_decay": 0.997,
    }
    if width == 1 or "MobilenetV2/Conv_1/weights" not in foreign:
        return fields, modules, _FINAL_CONV
    # Classification networks of other widths round features to multiples of 8; those of research/deeplab do not.
    modules |= _conv_and_norm("backbone/final", "MobilenetV2/Conv_1")
    return fields | {"backbone": "mobilenet_v2_full"}, modules, {}


def _resnet_v1_beta(foreign: Mapping[str, np.ndarray], scopes: set[str]) -> tuple[dict, dict[str, str]]:
    """Returns fields of `config.model` and the foreign name of each layer."""
    scope = next((scope for scope in _RESNET_UNITS if scope in scopes), None)
    if scope is None:
        known = ", ".join(("MobilenetV2", "MobilenetV3", *_RESNET_UNITS, *_XCEPTIONS))
        found = ", ".join(sorted(scopes)[:5])
        raise UserError(f"the checkpoint does not contain {known}; its variables start with {found}")
    if f"{scope}/conv1/weights" in foreign:
        raise UserError(
            f"{scope} starts with a 7x7 convolution; only the beta variant with three 3x3 ones is supported"
        )
    modules = {}
    for i in (1, 2, 3):
        modules[f"backbone/stem_conv{i}"] = f"{scope}/conv1_{i}"
        modules[f"backbone/stem_norm{i}"] = f"{scope}/conv1_{i}/BatchNorm"
    for stage, units in enumerate(_RESNET_UNITS[scope], 1):
        for block in range(1, units + 1):
            ours, theirs = f"backbone/stage{stage}_block{block}", f"{scope}/block{stage}/unit_{block}/bottleneck_v1"
            for i in (1, 2, 3):
                modules[f"{ours}/conv{i}"] = f"{theirs}/conv{i}"
                modules[f"{ours}/norm{i}"] = f"{theirs}/conv{i}/BatchNorm"
            modules |= _conv_and_norm(f"{ours}/shortcut", f"{theirs}/shortcut")
    fields = {
        "backbone": f"resnet{scope.removeprefix('resnet_v1_')}_v1_beta",
        "padding": "symmetric",
        "backbone_norm_epsilon": 1e-5,
        "backbone_norm_decay": 0.95,
    }
    return fields, modules


def _xception(scope: str) -> tuple[dict, dict[str, str]]:
    """Returns fields of `config.model` and the foreign name of each layer."""
    backbone, modules = _XCEPTIONS[scope], {}
    for i in (1, 2):
        modules[f"backbone/stem_conv{i}"] = f"{scope}/entry_flow/conv1_{i}"
        modules[f"backbone/stem_norm{i}"] = f"{scope}/entry_flow/conv1_{i}/BatchNorm"
    for block in BACKBONES[backbone].arguments["blocks"]:
        flow, number = block.name.split("_")
        for unit, name in enumerate(block.unit_names(), 1):
            ours, theirs = f"backbone/{name}", f"{scope}/{flow}_flow/{number}/unit_{unit}/xception_module"
            for i in (1, 2, 3):
                modules |= _block(f"{ours}/separable{i}", f"{theirs}/separable_conv{i}", separable=True)
            modules |= _conv_and_norm(f"{ours}/shortcut", f"{theirs}/shortcut")
    fields = {
        "backbone": backbone,
        "padding": "symmetric",
        "backbone_norm_epsilon": 1e-3,
        "backbone_norm_decay": 0.9997,
    }
    return fields, modules


def _head(foreign: Mapping[str, np.ndarray]) -> tuple[dict, dict[str, str]]:
    """Returns fields of `config.model` and the foreign name of each layer of ASPP, decoder and classifier."""
    cell = "meta_architecture/concat_projection/weights" in foreign
    fields, modules = _dense_prediction_cell(foreign) if cell else _aspp(foreign)
    fields |= {"aspp_dropout": 0.1, "decoder": "none", "head_norm_epsilon": 1e-5, "head_norm_decay": 0.9997}
    modules["classifier"] = "logits/semantic"
    if "decoder/feature_projection0/weights" not in foreign:
        return fields, modules
    decoder_fields, decoder_modules = _decoder(foreign)
    return fields | decoder_fields, modules | decoder_modules


def _dense_prediction_cell(foreign: Mapping[str, np.ndarray]) -> tuple[dict, dict[str, str]]:
    scope = "meta_architecture"
    modules = {
        "aspp/projection": f"{scope}/concat_projection",
        "aspp/projection_norm": f"{scope}/concat_projection/BatchNorm",
    }
    for i in range(len(BRANCHES)):
        modules |= _block(f"aspp/branch{i + 1}", f"{scope}/branch{i}", separable=True)
    return {"aspp": "dpc", "aspp_channels": _features(foreign, f"{scope}/concat_projection")}, modules


def _aspp(foreign: Mapping[str, np.ndarray]) -> tuple[dict, dict[str, str]]:
    branches = sorted({found[1] for name in foreign if (found := re.match(r"aspp([1-9]\d*)(?:_depthwise)?/", name))})
    if branches not in ([], ["1", "2", "3"]):
        raise UserError(f"ASPP has the atrous branches {', '.join(branches)}; only three are supported")
    modules = {"aspp/projection": "concat_projection", "aspp/projection_norm": "concat_projection/BatchNorm"}
    modules |= _block("aspp/branch_1x1", "aspp0") | _block("aspp/branch_pooling", "image_pooling")
    separable = "aspp1_depthwise/depthwise_weights" in foreign
    for branch in branches:
        modules |= _block(f"aspp/branch_atrous{branch}", f"aspp{branch}", separable=separable)
    fields = {
        "aspp_channels": _features(foreign, "aspp0"),
        "aspp_separable": separable,
        "atrous_rates": _RATES if branches else (),
        "image_pooling": "image_pooling/weights" in foreign,
    }
    if _features(foreign, "concat_projection") != fields["aspp_channels"]:
        raise UserError("aspp0 and concat_projection have different numbers of features")
    return fields, modules


def _decoder(foreign: Mapping[str, np.ndarray]) -> tuple[dict, dict[str, str]]:
    separable = "decoder/decoder_conv0_depthwise/depthwise_weights" in foreign
    modules = _block("decoder/low_level", "decoder/feature_projection0")
    for i in (1, 2):
        # Plain convolutions come from slim's `repeat`, which counts from 1 inside a scope.
        scope = f"decoder/decoder_conv{i - 1}" if separable else f"decoder/decoder_conv0/decoder_conv0_{i}"
        modules |= _block(f"decoder/refine{i}", scope, separable=separable)
    fields = {
        "decoder": "separable" if separable else "paper",
        "low_level_channels": _features(foreign, "decoder/feature_projection0"),
        "decoder_channels": _features(foreign, modules["decoder/refine2/conv"]),
    }
    return fields, modules


def _conv_and_norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}_conv": theirs, f"{ours}_norm": f"{theirs}/BatchNorm"}


def _block(ours: str, theirs: str, *, separable: bool = False) -> dict[str, str]:
    """Returns the foreign names of a `ConvNormAct`."""
    if not separable:
        return {f"{ours}/conv": theirs, f"{ours}/norm": f"{theirs}/BatchNorm"}
    return _conv_and_norm(f"{ours}/depthwise", f"{theirs}_depthwise") | _block(ours, f"{theirs}_pointwise")
