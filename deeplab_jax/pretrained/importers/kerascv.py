"""KerasCV's DeepLabV3Plus with a ResNetV2 backbone, and ResNetV2 backbones.

Source of the names and order of layers: keras_cv 0.9, `deeplab_v3_plus.py`, `spatial_pyramid.py` and
`resnet_v2_backbone.py`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.network import PretrainedNetwork, model_config, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers import keras_h5
from deeplab_jax.pretrained.translate import KERAS, translate

_BLOCKS = {16: ("resnet50", (3, 4, 6, 3)), 33: ("resnet101", (3, 4, 23, 3)), 50: ("resnet152", (3, 8, 36, 3))}
_RATES = (6, 12, 18)
_SKIPPED = {
    "post_bn/.*": "KerasCV's DeepLab uses the features before this BatchNorm",
    "optimizer/.*": "optimizer state",
}


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads a `.weights.h5`, `.keras` or legacy `.h5` file (the last for backbones only).

    A `.keras` file states the atrous rates and whether the model divides images by 255. For other files, the values of
    KerasCV's presets are assumed: rates 6, 12, 18 and division by 255.

    Raises:
      UserError: the file cannot be read or contains another network.
    """
    return convert(*keras_h5.read(path), source=str(path))


def convert(layers: Sequence[keras_h5.Layer], config: Mapping[str, Any], *, source: str) -> PretrainedNetwork:
    """Converts the result of `keras_h5.read` to a network. Error messages name `source`."""
    is_deeplab = any("spatial_pyramid_pooling" in layer.path for layer in layers)
    # A backbone has three BatchNorms per block and a last one, which DeepLab lacks; the head of DeepLab has eight.
    norms = sum("moving_mean" in layer.arrays for layer in layers)
    units, rest = divmod(norms - (8 if is_deeplab else 1), 3)
    if rest or units not in _BLOCKS:
        raise UserError(
            f"{source} has {norms} BatchNorms, which does not match a KerasCV DeepLabV3Plus or ResNetV2 backbone of "
            "50, 101 or 152 layers"
        )
    name, blocks = _BLOCKS[units]
    places, modules = _backbone_tables(blocks, "layers/functional/layers/" if is_deeplab else "layers/")
    if is_deeplab:
        head_places, head_modules = _head_tables()
        places, modules = places | head_places, modules | head_modules
    arrays = keras_h5.named_arrays(layers, places)
    channels = {kernel: value.shape[2:] for kernel, value in arrays.items() if kernel.endswith("/kernel")}
    try:
        in_channels = channels["conv1_conv/kernel"][0]
        sizes = {}
        if is_deeplab:
            sizes = {
                "aspp_channels": channels[f"{_ASPP}/projection/layers/conv2d/kernel"][1],
                "low_level_channels": channels["low_level_feature_conv/kernel"][1],
                "decoder_channels": channels["segmentation_head_conv/kernel"][1],
            }
            num_classes = channels["segmentation_output/kernel"][1]
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{source} has no layer {error}; expected weights of KerasCV's DeepLabV3Plus or ResNetV2"
        ) from None
    model = model_config(
        backbone=f"{name}_v2_kerascv",
        in_channels=in_channels,
        output_stride=32,
        atrous_rates=_RATES,
        atrous_rates_stride=32,
        decoder="kerascv",
        classifier_bias=False,
        kernel_init="glorot_uniform",
        backbone_norm_epsilon=1.001e-5,
        backbone_norm_decay=0.99,
        head_norm_epsilon=1e-3,
        head_norm_decay=0.99,
        padding="same_upper",
        input_mean=(0.0,) * in_channels,
        input_std=(255.0,) * in_channels,
        **sizes,
    )
    assumed = []
    if config:
        _apply_config(model, config, is_deeplab)
    elif is_deeplab:
        assumed = ["assumed, not in the file: rates 6, 12, 18 at stride 32, images divided by 255 inside"]
    else:
        assumed = ["assumed, not in the file: images divided by 255 inside"]
    shapes = variable_shapes(model, num_classes if is_deeplab else None)
    variables, report = translate(arrays, modules, shapes, KERAS, skipped=_SKIPPED)
    return PretrainedNetwork(
        model=model,
        variables=variables,
        label_set=voc_or_numbered_labels(num_classes) if is_deeplab else None,
        protocol="squeeze" if is_deeplab else "whole",
        image_size=(512, 512) if is_deeplab else None,
        report=report + assumed,
    )


def _backbone_tables(blocks: tuple[int, ...], prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the layer name of each place in the file, and the layer name of each of our layer paths.

    Keras stores the layers of a functional model from input to output. Layers at the same distance from the output are
    stored in the order in which the addition takes them: the shortcut before the last convolution.
    """
    names = {"conv1_conv": "backbone/stem_conv"}
    for stack, count in enumerate(blocks):
        for block in range(1, count + 1):
            theirs, ours = f"v2_stack_{stack}_block{block}", f"backbone/stage{stack + 1}_block{block}"
            names[f"{theirs}_use_preactivation_bn"] = f"{ours}/preactivation_norm"
            for i in (1, 2):
                names[f"{theirs}_{i}_conv"], names[f"{theirs}_{i}_bn"] = f"{ours}/conv{i}", f"{ours}/norm{i}"
            if block == 1:
                names[f"{theirs}_0_conv"] = f"{ours}/shortcut_conv"
            names[f"{theirs}_3_conv"] = f"{ours}/conv3"
    order = [*names, "post_bn"]
    convs = [name for name in order if name.endswith("conv")]
    norms = [name for name in order if name.endswith("bn")]
    places = {prefix + keras_h5.numbered("conv2d", i): name for i, name in enumerate(convs)}
    places |= {prefix + keras_h5.numbered("batch_normalization", i): name for i, name in enumerate(norms)}
    return places, {ours: theirs for theirs, ours in names.items()}


_ASPP = "layers/spatial_pyramid_pooling"


def _head_tables() -> tuple[dict[str, str], dict[str, str]]:
    """Returns the tables of `_backbone_tables` for the head. ASPP layers have no names; their places serve as names."""
    modules = {
        "aspp/projection": f"{_ASPP}/projection/layers/conv2d",
        "aspp/projection_norm": f"{_ASPP}/projection/layers/batch_normalization",
        "decoder/low_level/conv": "low_level_feature_conv",
        "decoder/low_level/norm": "low_level_feature_norm",
        "decoder/refine1_conv": "segmentation_head_conv",
        "decoder/refine1_norm": "segmentation_head_norm",
        "classifier": "segmentation_output",
    }
    branches = ("branch_1x1", *(f"branch_atrous{i + 1}" for i in range(len(_RATES))), "branch_pooling")
    for i, branch in enumerate(branches):
        sequential = f"{_ASPP}/aspp_parallel_channels/{keras_h5.numbered('sequential', i)}/layers"
        modules[f"aspp/{branch}/conv"] = f"{sequential}/conv2d"
        modules[f"aspp/{branch}/norm"] = f"{sequential}/batch_normalization"
    places = {
        "layers/sequential/layers/conv2d": "low_level_feature_conv",
        "layers/sequential/layers/batch_normalization": "low_level_feature_norm",
        "layers/sequential_1/layers/conv2d": "segmentation_head_conv",
        "layers/sequential_1/layers/batch_normalization": "segmentation_head_norm",
        "layers/sequential_1/layers/conv2d_1": "segmentation_output",
    }
    return places, modules


def _apply_config(model: ConfigDict, config: Mapping[str, Any], is_deeplab: bool) -> None:
    """Copies the settings of a `.keras` file to `model`.

    Raises:
      UserError: strides or dilations differ from those of KerasCV's presets.
    """
    fields = config["config"]
    if is_deeplab:
        model.atrous_rates = tuple(fields["spatial_pyramid_pooling"]["config"]["dilation_rates"])
        fields = fields["backbone"]["config"]
    strides, dilations = fields["stackwise_strides"], fields["stackwise_dilations"] or [1, 1, 1, 1]
    if strides != [1, 2, 2, 2] or dilations != [1, 1, 1, 1]:
        raise UserError(
            f"the backbone has strides {strides} and dilations {dilations}; expected those of KerasCV's presets"
        )
    if not fields["include_rescaling"]:
        model.input_std = (1.0,) * model.in_channels
