"""DeepLabv3 with MobileNetV2 on Pascal VOC 2012, as research/deeplab trains it: no atrous branches, no decoder.

    deeplab-jax data prepare voc2012_segmentation --sbd-source benchmark.tgz
    deeplab-jax train --config deeplabv3_mobilenet_v2_voc \
        --config.train.init_from=mobilenet_v2_1.0_224 --workdir runs/deeplabv3_mobilenet_v2_voc

Published, from weights trained on COCO: mean IoU .7532 on val at output stride 16, .7019 with `width=0.5`.

Data: Pascal VOC 2012 trainaug, val
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `width` (factor on channels), `size` (of the square crop), `batch`, `steps`."""
    arg = parse_arg(arg, width=1.0, size=513, batch=16, steps=30_000)
    config = load_config(
        "deeplabv3plus_resnet101_voc", backbone="mobilenet_v2", size=arg.size, batch=arg.batch, steps=arg.steps
    )
    config.model.width_multiplier = arg.width
    config.model.multi_grid = ()
    config.model.atrous_rates = ()
    config.model.decoder = "none"
    config.model.backbone_norm_epsilon = 1e-3
    config.model.backbone_norm_decay = 0.997
    config.model.padding = "same_upper"
    config.optimizer.weight_decay = 4e-5
    config.eval.image_size = (arg.size, arg.size)
    return config
