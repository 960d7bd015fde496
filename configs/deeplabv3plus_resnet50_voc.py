"""DeepLabv3+ with ResNet-50 on Pascal VOC 2012, otherwise the same as `deeplabv3plus_resnet101_voc`.

    deeplab-jax data prepare voc2012_segmentation --sbd-source benchmark.tgz
    deeplab-jax train --config deeplabv3plus_resnet50_voc --workdir runs/deeplabv3plus_resnet50_voc

The papers do not report this network. Published by others, from ImageNet weights: mean IoU .772
(VainF/DeepLabV3Plus-Pytorch, center-cropped val) and .7692 (SegmentationBLWX/sssegmentation).

Data: Pascal VOC 2012 trainaug, val
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `size`, `batch`, `steps`, as in `deeplabv3plus_resnet101_voc`."""
    arg = parse_arg(arg, size=513, batch=16, steps=30_000)
    return load_config("deeplabv3plus_resnet101_voc", backbone="resnet50_v1_beta", **arg)
