"""DeepLabv3+ on Cityscapes in the papers' protocol (arXiv 1802.02611, section 4.4): crops of 769x769, 90,000 steps.

    deeplab-jax data prepare folder --source cityscapes --data-dir data
    deeplab-jax train --config deeplabv3plus_cityscapes \
        --config.data.data_dir=data --config.train.init_from=resnet_v1_101_beta_imagenet --workdir runs/cityscapes

The source folder is that of `deeplabv3plus_resnet101_cityscapes`, which trains on whole images. Published for
`base=deeplabv3plus_xception65_voc`: mean IoU .7879 on val at output stride 16, .7914 without image-level features.

Data: Cityscapes train, val
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `base` (config of the network), `size` (of the square crop), `batch`, `steps`."""
    arg = parse_arg(arg, base="deeplabv3plus_resnet101_voc", size=769, batch=16, steps=90_000)
    config = load_config(arg.base, size=arg.size, batch=arg.batch, steps=arg.steps)
    config.data.name = "folder"
    config.data.train_split = "train"
    config.eval.image_size = (1025, 2049)
    config.eval.batch_size = 1
    return config
