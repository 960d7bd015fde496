"""DeepLabv3+ with EfficientNet-Lite0 on 50 labeled images of Pascal VOC 2012, alone or with 1,414 unlabeled ones.

    deeplab-jax data prepare voc2012_segmentation --source FOLDER
    deeplab-jax train --config voc_50_labels --workdir runs/stage1
    deeplab-jax train --config voc_50_labels:unlabeled=unlabeled_50,init=runs/stage1,rate=0.05,steps=400 \
        --workdir runs/both

docs/experiments/semi_supervised.md has the rule that chooses the 50 images, and the comparison.

Data: 50 and 1,414 images of VOC (long side at most 352 pixels); 449 of VOC val at their own size
Score: mean IoU .1647, pixel accuracy .7668 with unlabeled images, .1316 and .7463 without, after 500 + 400 steps
Hardware: two shared cores of an Intel Xeon, 25 minutes without and 37 minutes with unlabeled images, after 15
Commit: 2532abd
"""

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
    if arg.unlabeled:
        config.unlabeled.update(split=arg.unlabeled, teacher="average")
    config.train.ema_decay = 0.99
    config.eval.protocol = "whole"
    config.checkpoint.every = "20%"
    return config
