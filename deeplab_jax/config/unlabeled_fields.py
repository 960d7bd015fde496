"""The fields of `config.unlabeled`: images without labels, and the pseudo labels that training gives them."""

from deeplab_jax.config import ranges
from deeplab_jax.config.field import Field, Need

_NEED = Need("unlabeled.split")

#: Fields by name.
UNLABELED = {
    "split": Field(
        None,
        "split whose images are trained on with pseudo labels instead of their own (default: none); join several with "
        "`+`",
        value_type=str,
    ),
    "batch_size": Field(
        None,
        "global number of unlabeled images per step (default: `data.batch_size`)",
        value_type=int,
        range=ranges.COUNT,
        need=_NEED,
    ),
    "teacher": Field(
        "student",
        "network that predicts the pseudo labels of each step",
        {
            "student": "the network in training itself (FixMatch)",
            "average": "its moving average, `train.ema_decay` (Mean Teacher)",
        },
        need=_NEED,
    ),
    "threshold": Field(
        0.95, "a pixel counts if the probability of its pseudo label is at least this", range=ranges.SHARE, need=_NEED
    ),
    "weight": Field(
        1.0,
        "weight of the cross-entropy with the pseudo labels, whose mean is over all pixels, counted or not",
        range=ranges.ABOVE_ZERO,
        need=_NEED,
    ),
    "photometric_distortion": Field(
        True, "distort brightness, contrast, saturation and hue of the images that the network learns from", need=_NEED
    ),
    "grayscale": Field(0.2, "fraction of these images to turn gray", range=ranges.FRACTION, need=_NEED),
    "blur": Field(
        2.0,
        "blur half of these images with a Gaussian whose standard deviation is at most this many pixels",
        range=ranges.SIGMA,
        need=_NEED,
    ),
    "cut_mix": Field(
        0.5, "fraction of these images to paste a box of another one into (CutMix)", range=ranges.FRACTION, need=_NEED
    ),
}
