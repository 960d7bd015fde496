"""KerasHub's DeepLabV3+ with a ResNet v1 encoder, ResNet v1 encoders, and the door to SegFormer and MiT.

Source of the names and order of layers: keras_hub 0.32, `deeplab_v3_backbone.py`, `deeplab_v3_layers.py`,
`deeplab_v3_segmenter.py` and `resnet_backbone.py`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.importers import kerashub_segformer
from deeplab_jax.pretrained.network import PretrainedNetwork, model_config, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers import keras_h5
from deeplab_jax.pretrained.translate import KERAS, translate

# By number of BatchNorms in the encoder: one for the stem and one for each convolution of a block or shortcut.
_ENCODERS = {
    20: ("resnet18_v1", "basic", (2, 2, 2, 2)),
    36: ("resnet34_v1", "basic", (3, 4, 6, 3)),
    53: ("resnet50_v1", "bottleneck", (3, 4, 6, 3)),
    104: ("resnet101_v1", "bottleneck", (3, 4, 23, 3)),
    155: ("resnet152_v1", "bottleneck", (3, 8, 36, 3)),
}
_HEAD_NORMS = 8
_RATES = (6, 12, 18)
_SKIPPED = {"optimizer/.*": "optimizer state"}


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads a `.weights.h5` or `.keras` file of a segmenter or a backbone.

    The networks are `DeepLabV3ImageSegmenter`, `ResNetBackbone`, `SegFormerImageSegmenter` and `MiTBackbone`.

    KerasHub normalizes images outside the model. A DeepLabV3+ gets images of range 0-255, as in KerasHub's guide. An
    encoder gets timm's normalization, because KerasHub's presets contain timm's weights. The guide crops images to
    512x512; here they are resized to that size, so that every pixel is scored.

    Raises:
      UserError: the file cannot be read, contains another network, or has no classifier.
    """
    layers, config = keras_h5.read(path)
    if kerashub_segformer.is_mix_transformer(layers):
        return kerashub_segformer.convert(layers, config, source=str(path))
    return convert(layers, config, source=str(path))


def convert(layers: Sequence[keras_h5.Layer], config: Mapping[str, Any], *, source: str) -> PretrainedNetwork:
    """Converts the result of `keras_h5.read` to a network. Error messages name `source`."""
    is_deeplab = any("spatial_pyramid_pooling" in layer.path for layer in layers)
    norms = sum("moving_mean" in layer.arrays for layer in layers) - _HEAD_NORMS * is_deeplab
    if norms not in _ENCODERS:
        raise UserError(
            f"{source} has {norms} BatchNorms in its encoder, which does not match a KerasHub ResNet v1 of 18, 34, 50, "
            "101 or 152 layers"
        )
    backbone, block, blocks = _ENCODERS[norms]
    if not is_deeplab:
        places, modules = _encoder_tables(block, blocks, "layers/")
        arrays = keras_h5.named_arrays(layers, places)
        # the default normalization of the config is timm's
        model = model_config(backbone=backbone, output_stride=32, padding="symmetric", kernel_init="glorot_uniform")
        variables, report = translate(arrays, modules, variable_shapes(model, None), KERAS, skipped=_SKIPPED)
        return PretrainedNetwork(model=model, variables=variables, label_set=None, report=report)

    prefix = "layers/deep_lab_v3_backbone/layers/"
    places, modules = _encoder_tables(block, blocks, f"{prefix}functional/layers/")
    head_places, head_modules = _head_tables(prefix)
    modules |= head_modules
    arrays = keras_h5.named_arrays(layers, places | head_places)
    if "segmentation_output/kernel" not in arrays or "decoder_conv/kernel" not in arrays:
        raise UserError(
            f"{source} has no classifier or no low-level features; expected weights of a DeepLabV3ImageSegmenter "
            "with low_level_feature_key='P2'"
        )
    num_classes = arrays["segmentation_output/kernel"].shape[-1]
    rates, report_of_config = _RATES, [f"assumed, not in the file: rates {_RATES} at stride 32"]
    if config:
        fields, report_of_config = config["config"]["backbone"]["config"], []
        rates = tuple(fields["dilation_rates"])
        levels = fields["low_level_feature_key"], fields["spatial_pyramid_pooling_key"]
        if levels != ("P2", "P5"):
            raise UserError(f"{source} uses features of levels {levels}; only P2 and P5 are supported")
    model = model_config(
        backbone=backbone,
        output_stride=32,
        atrous_rates=rates,
        atrous_rates_stride=32,
        decoder="kerascv",
        low_level_channels=arrays["decoder_conv/kernel"].shape[-1],
        classifier_bias=False,
        kernel_init="glorot_uniform",
        head_norm_epsilon=1e-3,
        head_norm_decay=0.99,
        padding="symmetric",
        input_mean=(0.0, 0.0, 0.0),
        input_std=(1.0, 1.0, 1.0),
    )
    variables, report = translate(arrays, modules, variable_shapes(model, num_classes), KERAS, skipped=_SKIPPED)
    return PretrainedNetwork(
        model=model,
        variables=variables,
        label_set=voc_or_numbered_labels(num_classes),
        protocol="squeeze",
        image_size=(512, 512),
        report=report + report_of_config,
    )


def _encoder_tables(block: str, blocks: Sequence[int], prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the layer name of each place in the file, and the layer name of each of our layer paths.

    Keras stores the layers of a functional model from input to output. Layers at the same distance from the output are
    stored in the order in which the addition takes them: the shortcut before the last convolution.
    """
    names = {"conv1": "backbone/stem_{}"}
    last = {"basic": 2, "bottleneck": 3}[block]
    for stack, count in enumerate(blocks):
        for number in range(count):
            theirs, ours = f"stack{stack}_block{number}", f"backbone/stage{stack + 1}_block{number + 1}"
            for i in range(1, last):
                names[f"{theirs}_{i}"] = f"{ours}/{{}}{i}"
            if number == 0 and (block == "bottleneck" or stack > 0):
                names[f"{theirs}_0"] = f"{ours}/shortcut_{{}}"
            names[f"{theirs}_{last}"] = f"{ours}/{{}}{last}"
    places, modules = {}, {}
    for i, (theirs, ours) in enumerate(names.items()):
        places[prefix + keras_h5.numbered("conv2d", i)] = f"{theirs}_conv"
        places[prefix + keras_h5.numbered("batch_normalization", i)] = f"{theirs}_bn"
        modules[ours.format("conv")], modules[ours.format("norm")] = f"{theirs}_conv", f"{theirs}_bn"
    return places, modules


def _head_tables(prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the tables of `_encoder_tables` for the head."""
    places = {
        f"{prefix}conv2d": "decoder_conv",
        f"{prefix}batch_normalization": "decoder_norm",
        f"{prefix}conv2d_1": "segmentation_head_conv",
        f"{prefix}batch_normalization_1": "segmentation_head_norm",
        "layers/conv2d": "segmentation_output",
    }
    modules = {
        "decoder/low_level/conv": "decoder_conv",
        "decoder/low_level/norm": "decoder_norm",
        "decoder/refine1_conv": "segmentation_head_conv",
        "decoder/refine1_norm": "segmentation_head_norm",
        "classifier": "segmentation_output",
        "aspp/projection": "conv_projection",
        "aspp/projection_norm": "bn_projection",
    }
    pyramid = f"{prefix}spatial_pyramid_pooling"
    places[f"{pyramid}/projection/layers/conv2d"] = "conv_projection"
    places[f"{pyramid}/projection/layers/batch_normalization"] = "bn_projection"
    branches = {"branch_1x1": "1"}
    branches |= {f"branch_atrous{i + 1}": f"{i + 2}" for i in range(len(_RATES))}
    branches |= {"branch_pooling": "pooling"}
    for i, (ours, theirs) in enumerate(branches.items()):
        sequential = f"{pyramid}/aspp_parallel_channels/{keras_h5.numbered('sequential', i)}/layers"
        conv = "conv_pooling" if theirs == "pooling" else f"aspp_conv_{theirs}"
        norm = conv.replace("conv", "bn")
        places[f"{sequential}/conv2d"], places[f"{sequential}/batch_normalization"] = conv, norm
        modules[f"aspp/{ours}/conv"], modules[f"aspp/{ours}/norm"] = conv, norm
    return places, modules
