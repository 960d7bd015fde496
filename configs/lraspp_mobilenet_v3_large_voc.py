"""LR-ASPP with MobileNetV3-Large on Pascal VOC 2012, with torchvision's recipe.

    deeplab-jax data prepare voc2012_segmentation --sbd-source benchmark.tgz
    deeplab-jax train --config lraspp_mobilenet_v3_large_voc --workdir runs/lraspp_mobilenet_v3_large_voc

torchvision trains on the images of COCO that show VOC's classes, on eight V100 with four images each, and publishes
mean IoU .579 and pixel accuracy .912 on COCO val2017 (torchvision 0.29, `references/segmentation`). The learning
rate, the weight decay, the crop and the 30 epochs are torchvision's; the images are VOC's. `:init=` (empty) starts
from random weights.

Data: Pascal VOC 2012 trainaug, val
Score: not run
"""

from deeplab_jax.config import base_config, parse_arg


def get_config(arg=None):
    """Arguments: `size` (of the square crop), `batch`, `epochs`, `rate` (initial learning rate), `init` (a preset)."""
    arg = parse_arg(arg, size=480, batch=32, epochs=30, rate=0.01, init="mobilenet_v3_large_imagenet1k_v1")
    config = base_config()

    config.model.backbone = "mobilenet_v3_large"
    config.model.head = "lraspp"
    config.model.aspp_channels = 128
    config.model.output_stride = 16
    config.model.spread_converted_units = True
    config.model.backbone_norm_epsilon = 1e-3
    config.model.backbone_norm_decay = 0.99

    config.data.name = "voc2012_segmentation"
    config.data.train_split = "trainaug"
    config.data.image_size = (arg.size, arg.size)
    config.data.batch_size = arg.batch
    config.data.resize = "scale_crop"
    config.data.scale_range = (0.5, 2.0)
    config.data.scale_step = 0.0
    config.data.short_side = 520
    config.data.random_flip = "horizontal"

    config.train.duration = f"{arg.epochs} epochs"
    config.train.init_from = arg.init or None
    config.optimizer.learning_rate = arg.rate
    config.optimizer.schedule = "poly"
    config.optimizer.poly_power = 0.9
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-6
    config.optimizer.weight_decay_rule = "coupled_kernels"

    config.eval.protocol = "whole"
    config.eval.image_size = (512, 512)
    config.checkpoint.every = "10%"
    config.log.every_steps = 20
    return config
