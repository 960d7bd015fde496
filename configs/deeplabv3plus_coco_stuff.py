"""DeepLabv3+ on COCO's things and stuff, with the optimizer and the crops that the papers use for Pascal VOC.

    deeplab-jax data prepare coco_stuff --source coco --data-dir data
    deeplab-jax train --config deeplabv3plus_coco_stuff --config.data.data_dir=data \
        --config.train.init_from=resnet_v1_101_beta_imagenet --workdir runs/coco_stuff

`data=coco_stuff10k` trains on the 10,000 images of the first release and scores its test split, and
`data=coco_panoptic` trains on the classes of the panoptic task. The papers have no score for these data sets; the
80,000 steps are ours: 11 epochs.

Data: COCO 2017 train, val, with 171 classes
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg

_EVAL_SPLITS = {"coco_stuff": "val", "coco_stuff10k": "test", "coco_panoptic": "val"}


def get_config(arg=None):
    """Arguments: `data`, `base` (config of the network), `size` (of the square crop), `batch`, `steps`."""
    arg = parse_arg(
        arg,
        {"data": tuple(_EVAL_SPLITS)},
        data="coco_stuff",
        base="deeplabv3plus_resnet101_voc",
        size=513,
        batch=16,
        steps=80_000,
    )
    config = load_config(arg.base, size=arg.size, batch=arg.batch, steps=arg.steps)
    config.data.name = arg.data
    config.data.train_split, config.data.eval_split = "train", _EVAL_SPLITS[arg.data]
    config.eval.image_size = None  # the largest image of the split
    config.eval.batch_size = 1
    return config
