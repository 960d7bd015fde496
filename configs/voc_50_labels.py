"""DeepLabv3+ with EfficientNet-Lite0 on 50 labeled images of Pascal VOC 2012."""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `unlabeled` (a split), `size` (of the crop), `batch`, `steps`, `rate` (peak), `init` (a network)."""
    arg = parse_arg(arg, unlabeled="", size=193, batch=8, steps=500, rate=0.1, init="efficientnet_lite0_imagenet")
    config = load_config(
        "deeplabv3plus_efficientnet_lite0_voc",
        size=arg.size, batch=arg.batch, steps=arg.steps, rate=arg.rate, init=arg.init,
    )  # fmt: skip
    config.data.train_split = "train_50"
    config.data.resize = "scale_crop"
    config.data.scale_range = (0.5, 1.5)
    config.data.scale_step = 0.0
    config.data.color_jitter = 0.3
    config.unlabeled.split = arg.unlabeled or None
    config.unlabeled.teacher = "average"
    config.train.ema_decay = 0.99
    config.eval.protocol = "whole"
    config.checkpoint.every = "20%"
    return config
