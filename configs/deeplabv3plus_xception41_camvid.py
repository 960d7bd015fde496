"""DeepLabv3+ with Xception-41 on CamVid at 129x97 pixels, from random weights: a short run for two CPU cores.

    deeplab-jax data prepare camvid --source FOLDER
    deeplab-jax train --config deeplabv3plus_xception41_camvid --workdir runs/xception41_camvid

It shows that the network learns; docs/experiments/xception.md has the curve. `camvid` is the config to train for a
score.

Data: CamVid train, val
Score: mean IoU .2728, accuracy .6846 on val; docs/experiments/xception.md has the curve
Hardware: two shared cores of an Intel Xeon with AMX, 19 minutes
Commit: 3591571
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `height`, `width` (to which images are resized), `batch`, `steps`, `rate` (peak)."""
    arg = parse_arg(arg, height=97, width=129, batch=8, steps=300, rate=0.001)
    config = load_config("deeplabv3plus_xception65_voc", batch=arg.batch, backbone="xception41")
    # The statistics of a short run do not follow with the paper's decay of 0.9997.
    config.model.backbone_norm_decay = 0.95
    config.model.head_norm_decay = 0.95

    config.data.name = "camvid"
    config.data.train_split, config.data.eval_split = "train", "val"
    config.data.image_size = (arg.height, arg.width)
    config.data.resize = "squeeze"
    config.data.antialias = True
    config.data.color_jitter = 0.3

    config.train.duration = f"{arg.steps} steps"
    config.optimizer.name = "adam"  # AdamW
    config.optimizer.weight_decay = 0.02
    config.optimizer.weight_decay_rule = "decoupled_all"
    config.optimizer.learning_rate = arg.rate
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5%"

    config.eval.protocol = "squeeze"
    config.eval.image_size = None
    config.eval.every = "10%"
    config.checkpoint.every = "50%"
    config.log.every_steps = 10
    return config
