"""DeepLabv3+ with ResNet-101 on Pascal VOC 2012 in the papers' protocol (arXiv 1802.02611, table 3).

    deeplab-jax data prepare voc2012_segmentation --sbd-source benchmark.tgz
    deeplab-jax train --config deeplabv3plus_resnet101_voc \
        --config.train.init_from=resnet_v1_101_beta_imagenet --workdir runs/deeplabv3plus_resnet101_voc
    deeplab-jax evaluate --workdir runs/deeplabv3plus_resnet101_voc --config.model.output_stride=8

With `:two_stages`, a second stage trains on trainval at stride 8, as for VOC test (arXiv 1706.05587, section 4.1). Like
research/deeplab's fine_tune_batch_norm=False, it freezes BatchNorm's statistics. Its scores on val mean nothing.

Published, from ImageNet weights: mean IoU .7885 on val at output stride 16, .7935 evaluated at stride 8 (single scale).

Data: Pascal VOC 2012 trainaug, val
Score: not run
"""

from deeplab_jax.config import base_config, parse_arg


def get_config(arg=None):
    """Arguments: `size` (of the square crop; k * 16 + 1 keeps features aligned), `batch`, `steps` (of each stage),
    `backbone`, `two_stages`.
    """
    arg = parse_arg(arg, size=513, batch=16, steps=30_000, backbone="resnet101_v1_beta", two_stages=False)
    config = base_config()

    config.model.backbone = arg.backbone
    config.model.output_stride = 16
    config.model.multi_grid = (1, 2, 4)
    config.model.atrous_rates = (6, 12, 18)
    config.model.aspp_dropout = 0.1
    config.model.decoder = "paper"
    config.model.backbone_norm_decay = 0.9997
    config.model.head_norm_decay = 0.9997
    config.model.padding = "symmetric"
    config.model.align_corners = True
    config.model.input_mean = (127.5, 127.5, 127.5)
    config.model.input_std = (127.5, 127.5, 127.5)

    config.data.name = "voc2012_segmentation"
    config.data.train_split = "trainaug"
    config.data.image_size = (arg.size, arg.size)
    config.data.batch_size = arg.batch
    config.data.resize = "scale_crop"
    config.data.scale_range = (0.5, 2.0)
    config.data.scale_step = 0.25
    config.data.random_flip = "horizontal"

    config.train.duration = f"{arg.steps} steps"
    config.optimizer.learning_rate = 0.007
    config.optimizer.schedule = "poly"
    config.optimizer.poly_power = 0.9
    config.optimizer.momentum = 0.9
    config.optimizer.bias_multiplier = 2.0  # research/deeplab/utils/train_utils.py
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_rule = "coupled_kernels"

    config.eval.protocol = "whole"
    config.eval.image_size = (513, 513)
    config.checkpoint.every = "1000 steps"
    config.log.every_steps = 100
    if arg.two_stages:
        config.stages = {
            "stage1": {},
            "stage2": {
                "model": {"output_stride": 8, "freeze_norm_statistics": True},
                "data": {"train_split": "trainval"},
                "optimizer": {"learning_rate": 0.001},
            },
        }
    return config
