"""DeepLabv3+ with ResNet-50 on CamVid: street scenes of 480x360 in eleven classes, SegNet's split.

    deeplab-jax data prepare camvid --source FOLDER
    deeplab-jax train --config camvid --workdir runs/camvid
    deeplab-jax evaluate --workdir runs/camvid --split test

Published on this split without pretraining: 66.9 (FC-DenseNet103), 67.7 (FC-HarDNet84) test mean IoU. Not run here.
"""

from deeplab_jax.config import base_config, parse_arg


def get_config(arg=None):
    """Arguments: `batch`, `steps`, `backbone`."""
    arg = parse_arg(arg, batch=8, steps=10_000, backbone="resnet50_v1")
    config = base_config()

    config.model.backbone = arg.backbone
    config.model.output_stride = 16
    config.model.aspp_separable = True
    config.model.decoder = "separable"
    config.model.aspp_dropout = 0.1

    config.data.name = "camvid"
    config.data.image_size = (360, 480)
    config.data.batch_size = arg.batch
    config.data.resize = "scale_crop"
    config.data.random_flip = "horizontal"

    config.train.steps = arg.steps
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "poly"
    config.optimizer.warmup_percent = 2.0
    config.optimizer.weight_decay = 1e-4

    config.eval.protocol = "whole"
    config.eval.every_percent = 10.0
    config.checkpoint.every_percent = 10.0
    config.log.every_steps = 50
    return config
