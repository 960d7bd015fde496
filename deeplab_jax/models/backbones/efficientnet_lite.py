"""EfficientNet-Lite (github.com/tensorflow/tpu, efficientnet/lite), with ReLU6 and no squeeze-and-excitation."""

import math

from deeplab_jax.models.backbones.inverted_residual import InvertedResidualNetwork, Stage, scaled_features
from deeplab_jax.models.layers import Layers

# EfficientNet-B0 (arXiv 1905.11946, table 1).
_STAGES = (
    Stage(features=16, units=1, stride=1, expansion=1, kernel_size=3),
    Stage(features=24, units=2, stride=2, expansion=6, kernel_size=3),
    Stage(features=40, units=2, stride=2, expansion=6, kernel_size=5),
    Stage(features=80, units=3, stride=2, expansion=6, kernel_size=3),
    Stage(features=112, units=3, stride=1, expansion=6, kernel_size=5),
    Stage(features=192, units=4, stride=2, expansion=6, kernel_size=5),
    Stage(features=320, units=1, stride=1, expansion=6, kernel_size=3),
)


def scaled_stages(width: int | float, depth: int | float) -> tuple[Stage, ...]:
    """Scales the width of the stages by `width` and their number of units by `depth`.

    Unlike in EfficientNet, the first and the last stage keep a single unit.
    """
    first, *middle, last = (stage._replace(features=scaled_features(stage.features, width)) for stage in _STAGES)
    middle = [stage._replace(units=math.ceil(stage.units * depth)) for stage in middle]
    return (first, *middle, last)


def efficientnet_lite(
    layers: Layers, *, width: int | float, depth: int | float, final_conv: bool = False, **options
) -> InvertedResidualNetwork:
    """Builds EfficientNet-Lite with atrous conversion. The stem and the final convolution are not scaled.

    Args:
      layers: the layer constructors.
      width: factor of the width of the stages.
      depth: factor of the number of units of the stages.
      final_conv: whether to keep the 1x1 convolution of the classification network to 1280 channels.
      **options: `output_stride`, `spread_converted`, `name`.
    """
    stages, final_features = scaled_stages(width, depth), 1280 if final_conv else 0
    return InvertedResidualNetwork(layers, stem_features=32, stages=stages, final_features=final_features, **options)
