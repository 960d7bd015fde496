"""MobileNetV2 (arXiv 1801.04381, table 2)."""

from deeplab_jax.models.backbones.inverted_residual import InvertedResidualNetwork, Stage, scaled_features
from deeplab_jax.models.layers import Layers

STAGES = (
    Stage(features=16, units=1, stride=1, expansion=1),
    Stage(features=24, units=2, stride=2, expansion=6),
    Stage(features=32, units=3, stride=2, expansion=6),
    Stage(features=64, units=4, stride=2, expansion=6),
    Stage(features=96, units=3, stride=1, expansion=6),
    Stage(features=160, units=3, stride=2, expansion=6),
    Stage(features=320, units=1, stride=1, expansion=6),
)


def mobilenet_v2(
    layers: Layers, *, width_multiplier: int | float = 1.0, final_conv: bool = False, **options
) -> InvertedResidualNetwork:
    """MobileNetV2 with atrous conversion.

    Args:
      layers: the layer constructors.
      width_multiplier: of every stage's features.
      final_conv: whether the 1x1 convolution to 1280 features (times a multiplier above 1) of the classification
        network is kept: torchvision's and segmentation_models.pytorch's encoders have it, research/deeplab's has not.
      **options: `output_stride`, `spread_converted`, `name`.
    """
    # research/deeplab rounds a scaled width to a whole number (`feature_extractor.py`, `divisible_by`: 12 features from
    # 24 at 0.5), the classification networks to a multiple of 8.
    divisor = 8 if final_conv else 1
    stages = (stage._replace(features=scaled_features(stage.features, width_multiplier, divisor)) for stage in STAGES)
    return InvertedResidualNetwork(
        layers,
        stem_features=scaled_features(32, width_multiplier, divisor),
        stages=tuple(stages),
        final_features=scaled_features(1280, max(1.0, width_multiplier)) if final_conv else 0,
        **options,
    )
