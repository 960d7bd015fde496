"""DeepLabv3+ with Xception-65 on Pascal VOC 2012 in the paper's protocol (arXiv 1802.02611, table 5).

    deeplab-jax data prepare voc2012_segmentation --sbd-source benchmark.tgz
    deeplab-jax train --config deeplabv3plus_xception65_voc \
        --config.train.init_from=xception_65_imagenet --workdir runs/deeplabv3plus_xception65_voc
    deeplab-jax evaluate --workdir runs/deeplabv3plus_xception65_voc --config.model.output_stride=8

Published, from ImageNet weights: mean IoU .7979 on val at output stride 16, .8002 evaluated at stride 8 (single scale);
with dense convolutions in ASPP and the decoder, `separable=False`, .7993 and .8022.

Data: Pascal VOC 2012 trainaug, val
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `size`, `batch`, `steps` as in `deeplabv3plus_resnet101_voc`; `backbone`, `separable`."""
    arg = parse_arg(arg, size=513, batch=16, steps=30_000, backbone="xception65", separable=True)
    config = load_config(
        "deeplabv3plus_resnet101_voc", size=arg.size, batch=arg.batch, steps=arg.steps, backbone=arg.backbone
    )
    config.model.multi_grid = ()
    config.model.aspp_separable = arg.separable
    config.model.decoder = "separable" if arg.separable else "paper"
    config.model.backbone_norm_epsilon = 1e-3
    # research/deeplab/train.py: 4e-5 except for ResNet. It leaves out depthwise kernels, which are decayed here.
    config.optimizer.weight_decay = 4e-5
    return config
