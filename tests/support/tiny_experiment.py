"""A config file for runs in separate processes: a tiny network, generated scenes, a checkpoint every other step."""

from deeplab_jax.config import base_config, parse_arg


def get_config(arg=None):
    """Arguments: `steps`, `checkpoint` (steps between two), `rate` (learning rate)."""
    arg = parse_arg(arg, steps=10, checkpoint=2, rate=0.02)
    config = base_config()
    config.model.backbone = "resnet10_v1_slim"
    config.model.atrous_rates = (1, 2)
    config.model.aspp_channels = config.model.decoder_channels = config.model.low_level_channels = 8
    config.model.zero_unreached_taps = True
    config.data.name = "synthetic"
    config.data.num_examples = 20  # not a multiple of the batch: epochs end inside batches
    config.data.image_size = (32, 32)
    config.data.batch_size = 8
    config.eval.batch_size = 24  # does not divide the 200 scenes of val
    config.eval.every = "5 steps"
    config.train.duration = f"{arg.steps} steps"
    config.train.ema_decay = 0.9
    config.optimizer.learning_rate = arg.rate
    config.optimizer.schedule = "constant"  # runs of all lengths share one compiled step
    config.checkpoint.every = f"{arg.checkpoint} steps"
    config.log.every_steps = 3
    config.log.tensorboard = False
    config.distributed.heartbeat_seconds = 100  # test machines are slow at times
    return config
