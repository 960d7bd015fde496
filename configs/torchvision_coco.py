"""torchvision's recipe for COCO with VOC's 21 classes (references/segmentation): DeepLabv3 or LR-ASPP, batch size 32.

    deeplab-jax data prepare coco_voc_torchvision --data-dir data
    deeplab-jax train --config torchvision_coco \
        --config.data.data_dir=data --config.train.init_from=resnet50_imagenet1k_v1 --workdir runs/torchvision

torchvision scales images to a shorter side of 260 to 1040 pixels for training, as this does, and of 520 for evaluation;
this evaluates them at their own size. Published, on COCO val2017: mean IoU .664 for ResNet-50, .674 for
`backbone=resnet101_v1`, .603 for `backbone=mobilenet_v3_large`, .579 with `head=lraspp` on it.

Data: COCO train2017, val2017: images that contain VOC's classes
Score: not run
"""

from deeplab_jax.config import base_config, parse_arg


def get_config(arg=None):
    """Arguments: `backbone`, `head` (`deeplab` or `lraspp`), `size` (of the square crop), `batch`, `epochs`."""
    arg = parse_arg(arg, backbone="resnet50_v1", head="deeplab", size=480, batch=32, epochs=30)
    config = base_config()
    mobile = arg.backbone.startswith("mobilenet")

    config.model.backbone = arg.backbone
    config.model.head = arg.head
    config.model.output_stride = 16 if mobile else 8
    if arg.head == "lraspp":
        config.model.aspp_channels = 128
    else:
        config.model.atrous_rates = (12, 24, 36)
        config.model.atrous_rates_stride = config.model.output_stride
        config.model.aspp_dropout = 0.5
        config.model.decoder = "torchvision"
        config.model.auxiliary_channels = 10 if mobile else 256
        config.model.auxiliary_features = "mid_level_features" if mobile else "stage3"
        config.loss.auxiliary_weight = 0.5
        config.optimizer.learning_rate_multipliers.auxiliary = 10.0
    if mobile:
        config.model.spread_converted_units = True
        config.model.backbone_norm_epsilon = 1e-3
        config.model.backbone_norm_decay = 0.99

    config.data.name = "coco_voc_torchvision"
    config.data.image_size = (arg.size, arg.size)
    config.data.batch_size = arg.batch
    config.data.resize = "scale_crop"
    config.data.scale_range = (0.5, 2.0)
    config.data.scale_step = 0.0
    config.data.short_side = 520

    config.train.duration = f"{arg.epochs} epochs"
    config.optimizer.learning_rate = 0.01 if mobile else 0.02
    config.optimizer.schedule = "poly"
    config.optimizer.weight_decay = 1e-6 if mobile else 1e-4
    config.eval.protocol = "whole"
    config.eval.batch_size = 1
    config.checkpoint.every = "1 epochs"
    config.log.every_steps = 100
    return config
