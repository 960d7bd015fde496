"""DeepLabv3+ with Xception-65 on ADE20K, as research/deeplab trains it, without its logit for the ignored class 0.

    deeplab-jax data prepare ade20k --data-dir data
    deeplab-jax train --config deeplabv3plus_ade20k \
        --config.data.data_dir=data --config.train.init_from=xception_65_imagenet --workdir runs/ade20k

research/deeplab resizes images and masks to a longest side of `size` before it scales, crops or scores them; this
scores them at their own size. Published: mean IoU .4565 on val at stride 8, six scales, flipped too.

Data: ADE20K train, val
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `base` (config of the network), `size` (of the square crop), `batch`, `steps`."""
    arg = parse_arg(arg, base="deeplabv3plus_xception65_voc", size=513, batch=16, steps=150_000)
    config = load_config(arg.base, size=arg.size, batch=arg.batch, steps=arg.steps)
    config.data.name = "ade20k"
    config.data.train_split = "train"
    config.data.short_side = config.data.max_long_side = arg.size
    config.eval.image_size = None  # the largest image of the split
    config.eval.batch_size = 1
    return config
