"""Backbones by name. A new one is a file in this folder and its lines in `BACKBONES`.

A backbone is a Flax module built with `layers` (the layer constructors), `output_stride`, `spread_converted` and those
of `OPTIONS` that it takes. Called with normalized images it returns a dict of endpoints that has at least
`low_level_features` (stride 4, for the decoder) and `features` (at the output stride).
"""

import functools

from deeplab_jax.models.backbones.efficientnet_lite import efficientnet_lite
from deeplab_jax.models.backbones.mobilenet_v2 import mobilenet_v2
from deeplab_jax.models.backbones.resnet_v1 import ResNetV1
from deeplab_jax.models.backbones.resnet_v2 import ResNetV2

# Fields of `config.model` that only some backbones take, with the value that leaves them out.
OPTIONS = {"multi_grid": (), "width_multiplier": 1.0}

_BETA = {"stem": "deep", "strided_unit": "last"}
_KERASCV = {"strided_unit": "last", "final_norm": False}

BACKBONES = {
    # ResNet v1 as torchvision has it: 7x7 stem, stride in the 3x3 convolution of a stage's first block.
    "resnet18_v1": functools.partial(ResNetV1, blocks=(2, 2, 2, 2), block="basic"),
    "resnet34_v1": functools.partial(ResNetV1, blocks=(3, 4, 6, 3), block="basic"),
    "resnet50_v1": functools.partial(ResNetV1, blocks=(3, 4, 6, 3)),
    "resnet101_v1": functools.partial(ResNetV1, blocks=(3, 4, 23, 3)),
    "resnet152_v1": functools.partial(ResNetV1, blocks=(3, 8, 36, 3)),
    # ResNet v1 as research/deeplab has it: stem of three 3x3, stride in the last block of stages 1 to 3.
    "resnet50_v1_beta": functools.partial(ResNetV1, blocks=(3, 4, 6, 3), **_BETA),
    "resnet101_v1_beta": functools.partial(ResNetV1, blocks=(3, 4, 23, 3), **_BETA),
    "resnet152_v1_beta": functools.partial(ResNetV1, blocks=(3, 8, 36, 3), **_BETA),
    # One narrow block a stage, for quick runs on small images.
    "resnet10_v1_slim": functools.partial(ResNetV1, blocks=(1, 1, 1, 1), block="basic", stem="deep", width=24),
    # ResNet v2 (pre-activation), stride in a stage's first block.
    "resnet50_v2": functools.partial(ResNetV2, blocks=(3, 4, 6, 3)),
    "resnet101_v2": functools.partial(ResNetV2, blocks=(3, 4, 23, 3)),
    "resnet152_v2": functools.partial(ResNetV2, blocks=(3, 8, 36, 3)),
    # ResNet v2 as KerasCV has it: stride in a stage's last block, raw sums as features.
    "resnet50_v2_kerascv": functools.partial(ResNetV2, blocks=(3, 4, 6, 3), **_KERASCV),
    "resnet101_v2_kerascv": functools.partial(ResNetV2, blocks=(3, 4, 23, 3), **_KERASCV),
    "resnet152_v2_kerascv": functools.partial(ResNetV2, blocks=(3, 8, 36, 3), **_KERASCV),
    # MobileNetV2, of any width; `full` ends in the 1x1 convolution to 1280 features.
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v2_full": functools.partial(mobilenet_v2, final_conv=True),
    "efficientnet_lite0": functools.partial(efficientnet_lite, width=1.0, depth=1.0),
    "efficientnet_lite1": functools.partial(efficientnet_lite, width=1.0, depth=1.1),
    "efficientnet_lite2": functools.partial(efficientnet_lite, width=1.1, depth=1.2),
}
