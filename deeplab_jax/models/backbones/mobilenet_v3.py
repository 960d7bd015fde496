"""MobileNetV3 (arXiv 1905.02244, tables 1 and 2), and its variants for segmentation in research/deeplab."""

from deeplab_jax.models.backbones.inverted_residual import InvertedResidualNetwork, Stage
from deeplab_jax.models.layers import Layers

_STEM_FEATURES = 16


def _stage(
    features: int,
    *expanded: int,
    stride: int = 1,
    kernel_size: int = 3,
    squeeze: bool = False,
    activation: str = "hard_swish",
) -> Stage:
    return Stage(
        features,
        len(expanded),
        stride,
        kernel_size=kernel_size,
        expanded=expanded,
        squeeze=squeeze,
        activation=activation,
    )


_LARGE = (
    _stage(16, 16, activation="relu"),
    _stage(24, 64, 72, stride=2, activation="relu"),
    _stage(40, 72, 120, 120, stride=2, kernel_size=5, squeeze=True, activation="relu"),
    _stage(80, 240, 200, 184, 184, stride=2),
    _stage(112, 480, 672, squeeze=True),
)
_SMALL = (
    _stage(16, 16, stride=2, squeeze=True, activation="relu"),
    _stage(24, 72, 88, stride=2, activation="relu"),
    _stage(40, 96, 240, 240, stride=2, kernel_size=5, squeeze=True),
    _stage(48, 120, 144, kernel_size=5, squeeze=True),
)
#: The stages of each variant, and the number of channels of the last convolution. The variants for segmentation have
#: half the channels after stride 16 (`core/feature_extractor.py` of research/deeplab).
VARIANTS = {
    "large": ((*_LARGE, _stage(160, 672, 960, 960, stride=2, kernel_size=5, squeeze=True)), 960),
    "small": ((*_SMALL, _stage(96, 288, 576, 576, stride=2, kernel_size=5, squeeze=True)), 576),
    "large_seg": ((*_LARGE, _stage(80, 336, 480, 480, stride=2, kernel_size=5, squeeze=True)), 480),
    "small_seg": ((*_SMALL, _stage(48, 144, 288, 288, stride=2, kernel_size=5, squeeze=True)), 288),
}


def mobilenet_v3(layers: Layers, *, variant: str, taps: str, **options) -> InvertedResidualNetwork:
    """Builds MobileNetV3 with atrous conversion, up to the last convolution before the global mean.

    torchvision's segmentation networks (`dilated=True`) run it at output stride 16 with `spread_converted`,
    research/deeplab at 32.

    Args:
      layers: the layer constructors.
      variant: a key of `VARIANTS`.
      taps: see `InvertedResidualNetwork`.
      **options: `output_stride`, `spread_converted`, `name`.
    """
    stages, final_features = VARIANTS[variant]
    return InvertedResidualNetwork(
        layers,
        stem_features=_STEM_FEATURES,
        stages=stages,
        final_features=final_features,
        activation="hard_swish",
        taps=taps,
        **options,
    )
