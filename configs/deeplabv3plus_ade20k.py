"""DeepLabv3+ with Xception-65 on ADE20K, as research/deeplab trains it: 151 classes, of which class 0 is ignored.

    deeplab-jax data prepare folder --source ade20k --data-dir data
    deeplab-jax train --config deeplabv3plus_ade20k \
        --config.data.data_dir=data --config.train.init_from=xception_65_imagenet --workdir runs/ade20k

The masks have the ids of ADE20K, 0 changed to 255. research/deeplab scores images whose longest side is `size`: shrink
images and masks before you prepare them. Published: mean IoU .4565 on val at stride 8, six scales, mirrored.

Data: ADE20K train, val
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `base` (config of the network), `size` (of the square crop), `batch`, `steps`."""
    arg = parse_arg(arg, base="deeplabv3plus_xception65_voc", size=513, batch=16, steps=150_000)
    config = load_config(arg.base, size=arg.size, batch=arg.batch, steps=arg.steps)
    config.data.name = "folder"
    config.data.train_split = "train"
    config.eval.image_size = (arg.size, arg.size)
    return config
