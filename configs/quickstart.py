"""A small DeepLabv3+ learns to find drawn shapes: about two minutes on two free cores, no download.

    deeplab-jax train --config quickstart --workdir runs/quickstart

Reached here on val, on two AMD EPYC cores: mean IoU .8515, .8498, .8185 with seeds 0, 1, 2 (about two minutes alone,
three and a half with two runs side by side, compiling included).
"""

from deeplab_jax.config import base_config, parse_arg


def get_config(arg=None):
    """Arguments: `steps`, `size` (of the square scenes), `batch`, `seed`."""
    arg = parse_arg(arg, steps=900, size=64, batch=16, seed=0)
    config = base_config()

    config.model.backbone = "resnet10_v1_slim"
    config.model.output_stride = 8
    config.model.atrous_rates = (1, 2, 3)
    config.model.aspp_channels = 64
    config.model.decoder_channels = 64
    config.model.low_level_channels = 24
    config.model.zero_unreached_taps = True

    config.data.name = "synthetic"
    config.data.image_size = (arg.size, arg.size)
    config.data.batch_size = arg.batch
    config.data.random_flip = "horizontal_and_vertical"

    config.train.duration = f"{arg.steps} steps"
    config.train.seed = arg.seed
    config.optimizer.learning_rate = 0.4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5%"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.eval.protocol = "guide"
    config.checkpoint.every = "25%"
    config.log.every_steps = 50
    return config
