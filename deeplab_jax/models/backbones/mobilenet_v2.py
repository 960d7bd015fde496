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
    """Builds MobileNetV2 with atrous conversion.

    Args:
      layers: the layer constructors.
      width_multiplier: factor of the width of every stage.
      final_conv: whether to keep the 1x1 convolution of the classification network to 1280 channels (times a
        multiplier above 1). The encoders of torchvision and segmentation_models.pytorch have it; research/deeplab
        does not.
      **options: `output_stride`, `spread_converted`, `name`, and `taps`, see `InvertedResidualNetwork`.
    """
    # research/deeplab rounds a scaled width to a whole number (`feature_extractor.py`, `divisible_by`: 24 channels
    # times 0.5 are 12); the classification networks round to a multiple of 8.
    divisor = 8 if final_conv else 1
    stages = (stage._replace(features=scaled_features(stage.features, width_multiplier, divisor)) for stage in STAGES)
    return InvertedResidualNetwork(
        layers,
        stem_features=scaled_features(32, width_multiplier, divisor),
        stages=tuple(stages),
        final_features=scaled_features(1280, max(1.0, width_multiplier)) if final_conv else 0,
        **options,
    )
