"""DeepLabv3+ with EfficientNet-Lite0 on Pascal VOC, as far as two processor cores take it, in legs.

    deeplab-jax data prepare voc2012_segmentation --source FOLDER
    deeplab-jax convert --from tflite --output runs/teacher deeplabv3_mnv2_pascal_quant.tflite
    deeplab-jax train --config deeplabv3plus_efficientnet_lite0_shipped:teacher=runs/teacher --workdir runs/leg1

What it learns from beside the labels is Google's mobile DeepLabv3 (MobileNetV2, .7207 on the same validation
pictures), which sees every training picture as it does. Pictures of classes that less than 15 % of pictures have come
more often. Nothing here was chosen by looking at the validation split.
"""

from deeplab_jax.config import base_config, parse_arg


def get_config(arg=None):
    """Arguments: `teacher` (a preset or folder), `init` (likewise), `size` (of crops), `batch`, `steps`, `rate`."""
    arg = parse_arg(arg, teacher="", init="efficientnet_lite0_imagenet", size=193, batch=8, steps=2000, rate=0.2)
    config = base_config()

    config.model.backbone = "efficientnet_lite0"
    config.model.output_stride = 16
    config.model.aspp_separable = True
    config.model.aspp_channels = 128
    config.model.decoder = "separable"
    config.model.decoder_channels = 128
    config.model.backbone_norm_epsilon = 1e-3
    config.model.backbone_norm_decay = 0.97
    config.model.head_norm_decay = 0.97
    config.model.padding = "same_upper"
    config.model.input_mean = (127.0, 127.0, 127.0)
    config.model.input_std = (128.0, 128.0, 128.0)

    config.data.name = "voc2012_segmentation"
    config.data.image_size = (arg.size, arg.size)
    config.data.batch_size = arg.batch
    config.data.resize = "scale_crop"
    config.data.scale_range = (0.5, 1.5)
    config.data.scale_step = 0.0
    config.data.random_flip = "horizontal"
    config.data.color_jitter = 0.3
    config.data.repeat_threshold = 0.15

    config.train.steps = arg.steps
    config.train.init_from = arg.init
    config.train.ema_decay = 0.995
    config.loss.teacher = arg.teacher or None
    config.optimizer.learning_rate = arg.rate
    config.optimizer.learning_rate_multipliers.backbone = 0.25
    config.optimizer.schedule = "poly"
    config.optimizer.warmup_percent = 5.0
    config.optimizer.weight_decay = 4e-5
    config.optimizer.nesterov = True

    config.eval.protocol = "squeeze"
    config.checkpoint.every_percent = 5.0
    config.log.every_steps = 20
    return config
