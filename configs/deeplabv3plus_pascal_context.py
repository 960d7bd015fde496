"""DeepLabv3+ on Pascal Context, with the optimizer and the crops that the papers use for Pascal VOC.

    deeplab-jax data prepare pascal_context --source VOCdevkit --data-dir data
    deeplab-jax train --config deeplabv3plus_pascal_context --config.data.data_dir=data \
        --config.train.init_from=resnet_v1_101_beta_imagenet --workdir runs/pascal_context

`data=pascal_context_59` leaves the background out. The papers have no score for this data set; the 25,000 steps are
ours: 80 epochs.

Data: Pascal Context train, val, with 60 classes
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg

_DATA_SETS = ("pascal_context", "pascal_context_59")


def get_config(arg=None):
    """Arguments: `data`, `base` (config of the network), `size` (of the square crop), `batch`, `steps`."""
    arg = parse_arg(
        arg,
        {"data": _DATA_SETS},
        data="pascal_context",
        base="deeplabv3plus_resnet101_voc",
        size=513,
        batch=16,
        steps=25_000,
    )
    config = load_config(arg.base, size=arg.size, batch=arg.batch, steps=arg.steps)
    config.data.name = arg.data
    config.data.train_split = "train"
    config.eval.image_size = None  # the largest image of the split
    config.eval.batch_size = 1
    return config
