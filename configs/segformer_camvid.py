"""SegFormer B0 on CamVid in SegNet's split from random weights, small enough for a laptop.

    deeplab-jax data prepare camvid --source FOLDER
    deeplab-jax train --config segformer_camvid --workdir runs/segformer_camvid

Without weights of ImageNet, it needs a larger learning rate than `segformer_ade20k`, the same in backbone and head. For
800 steps, images vary less.

Data: CamVid train, val, 480x360 images of eleven classes
Score: mean IoU .2824, accuracy .7164 on val; docs/experiments/segformer.md has the curve
Hardware: two shared cores of an Intel Xeon with AMX, 9 minutes
Commit: 3591571
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `variant` (b0 to b5), `size` (of the square crop), `batch`, `steps`, `rate` (peak), `init`."""
    arg = parse_arg(arg, variant="b0", size=192, batch=8, steps=800, rate=6e-4, init="")
    config = load_config(
        "segformer_ade20k", variant=arg.variant, size=arg.size, batch=arg.batch, steps=arg.steps, init=arg.init
    )
    config.model.drop_path = 0.0
    config.data.name = "camvid"
    config.data.scale_range = (0.5, 1.25)
    config.data.short_side = config.data.max_long_side = 0
    config.data.cat_max_ratio = 1.0
    config.data.photometric_distortion = False
    config.data.color_jitter = 0.3

    config.train.ema_decay = 0.99
    config.optimizer.learning_rate = arg.rate
    config.optimizer.learning_rate_multipliers.decoder = 1.0
    config.optimizer.learning_rate_multipliers.classifier = 1.0
    config.optimizer.warmup = "10%"
    config.eval.update(protocol="whole", scale_to=None, size_multiple=1)
    config.eval.image_size = (360, 480)
    config.eval.batch_size = 1
    config.eval.every = "25%"
    config.checkpoint.every = "10%"
    config.log.every_steps = 20
    return config
