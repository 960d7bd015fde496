"""MobileNetV3 of research/deeplab, with or without its LR-ASPP head, from the variables of a TensorFlow checkpoint.

Facts about the originals, from tensorflow/models:

- `research/deeplab/core/feature_extractor.py`: the variants `mobilenet_v3_large_seg` and `mobilenet_v3_small_seg` have
  half the channels in the last block; BatchNorm has decay 0.997 and slim's default epsilon 0.001; images are scaled to
  [-1, 1]. The skip connection starts at the depthwise output of layer 7 (large) or 4 (small), which has stride 8.
- `research/slim/nets/mobilenet/conv_blocks.py`: a unit has a shortcut if it runs with stride 1 and keeps the number of
  features. At output stride 16 this adds one to the strided unit of `mobilenet_v3_small_seg`. Ours has none, so that
  weights trained at stride 32 compute the same features on a denser grid.
- `research/slim/nets/mobilenet/mobilenet_v3.py` and `research/deeplab/core/utils.py`: hard sigmoids multiply by
  0.16667 instead of 1/6, hard-swish by 1/6.
- `research/deeplab/model.py`: with `aspp_with_squeeze_and_excitation`, the image-level branch has a bias instead of
  BatchNorm and multiplies `aspp0`. With `decoder_output_is_logits`, 1x1 convolutions with bias classify the features
  and the end point, and their sum is resized with aligned corners.
- `research/deeplab/g3doc/model_zoo.md`: the checkpoints for Cityscapes were trained with
  `image_pooling_crop_size=769,769`, `image_pooling_stride=4,5`, `image_se_uses_qsigmoid` and output stride 32.
"""

from collections.abc import Mapping

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones.mobilenet_v3 import VARIANTS
from deeplab_jax.pretrained.network import PretrainedNetwork, model_config, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.translate import SLIM, translate

SCOPE = "MobilenetV3"

_WINDOW, _STRIDE = (769, 769), (4, 5)
_CLASSIFIER = {rf"{SCOPE}/(Conv_2|Logits)/.*": "ImageNet classifier"}
# The factor of the original's hard sigmoid by that of ours. A gate is followed by a convolution, which takes it over.
_GATE_SCALE = 6 * 0.16667


def from_variables(foreign: Mapping[str, np.ndarray], *, skipped: Mapping[str, str]) -> PretrainedNetwork:
    """Converts the variables of a checkpoint, by name, to a network, or to a backbone if there is no head.

    Args:
      foreign: variables in the scope `MobilenetV3`, and those of a head.
      skipped: regular expressions of names to skip, each with the reason.

    Raises:
      UserError: the variables are those of another network.
    """
    variant = _find_variant(foreign)
    fields = {
        "backbone": f"mobilenet_v3_{variant}",
        "output_stride": 32,
        "padding": "same_upper",
        "align_corners": True,
        "input_mean": (127.5,) * 3,
        "input_std": (127.5,) * 3,
        "backbone_norm_epsilon": 1e-3,
        "backbone_norm_decay": 0.997,
    }
    modules, gated = _trunk(variant)
    num_classes, report = None, []
    if "decoder/decoder_conv0/weights" in foreign:
        num_classes = foreign["decoder/decoder_conv0/weights"].shape[-1]
        gated.append("decoder/decoder_conv0")
        fields |= {
            "head": "lraspp",
            "aspp_channels": foreign["decoder/decoder_conv0/weights"].shape[-2],
            "lraspp_gate": "hard_sigmoid",
            "image_pooling_window": _WINDOW,
            "image_pooling_stride": _STRIDE,
            "head_norm_epsilon": 1e-5,
            "head_norm_decay": 0.9997,
        }
        modules |= {
            "aspp/projection/conv": "aspp0",
            "aspp/projection/norm": "aspp0/BatchNorm",
            "aspp/gate_conv": "image_pooling",
            "classifier/features": "decoder/decoder_conv0",
            "classifier/mid_level": "decoder/feature_projection0",
        }
        report.append(f"assumed, not in the file: image pooling window {_WINDOW}, stride {_STRIDE}, output stride 32")
    foreign = dict(foreign)
    for name in (f"{layer}/weights" for layer in gated):
        if name in foreign:
            foreign[name] = foreign[name] * np.float32(_GATE_SCALE)
    model = model_config(**fields)
    shapes = variable_shapes(model, num_classes)
    variables, lines = translate(foreign, modules, shapes, SLIM, skipped={**skipped, **_CLASSIFIER})
    label_set = None if num_classes is None else voc_or_numbered_labels(num_classes)
    return PretrainedNetwork(model, variables, label_set, report=lines + report)


def _find_variant(foreign: Mapping[str, np.ndarray]) -> str:
    """Returns the key of `VARIANTS` with the features of the last convolution."""
    kernel = foreign.get(f"{SCOPE}/Conv_1/weights")
    features = 0 if kernel is None else kernel.shape[-1]
    for name, (_, final_features) in VARIANTS.items():
        if final_features == features:
            return name
    known = ", ".join(str(final_features) for _, final_features in VARIANTS.values())
    raise UserError(f"{SCOPE}/Conv_1 has {features} features; expected a MobileNetV3 with one of {known}")


def _trunk(variant: str) -> tuple[dict[str, str], list[str]]:
    """Returns the foreign name of each layer, and the foreign names of the layers that follow a gate."""
    modules = _conv_and_norm("backbone/stem", f"{SCOPE}/Conv") | _conv_and_norm("backbone/final", f"{SCOPE}/Conv_1")
    gated, number = [], 0
    for stage_number, stage in enumerate(VARIANTS[variant][0], 1):
        for unit in range(1, stage.units + 1):
            ours = f"backbone/stage{stage_number}_block{unit}"
            theirs = f"{SCOPE}/expanded_conv_{number}" if number else f"{SCOPE}/expanded_conv"
            for part in ("expand", "depthwise", "project"):
                modules |= _conv_and_norm(f"{ours}/{part}", f"{theirs}/{part}")
            if stage.squeeze:
                modules[f"{ours}/squeeze_excite/squeeze_conv"] = f"{theirs}/squeeze_excite/Conv"
                modules[f"{ours}/squeeze_excite/excite_conv"] = f"{theirs}/squeeze_excite/Conv_1"
                gated.append(f"{theirs}/project")
            number += 1
    return modules, gated


def _conv_and_norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}_conv": theirs, f"{ours}_norm": f"{theirs}/BatchNorm"}
