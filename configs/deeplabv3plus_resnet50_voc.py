"""DeepLabv3+ with ResNet-50, otherwise as `deeplabv3plus_resnet101_voc`: the papers' protocol on Pascal VOC 2012.

    deeplab-jax data prepare voc2012_segmentation --sbd-source benchmark.tgz
    deeplab-jax train --config deeplabv3plus_resnet50_voc --workdir runs/deeplabv3plus_resnet50_voc

The papers have no row for this network. Others publish 77.2 (VainF/DeepLabV3Plus-Pytorch, output stride 16,
center-cropped val) and 76.92 (SegmentationBLWX/sssegmentation) from ImageNet weights. Not run here.
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `size`, `batch`, `steps`, as in `deeplabv3plus_resnet101_voc`."""
    arg = parse_arg(arg, size=513, batch=16, steps=30_000)
    return load_config("deeplabv3plus_resnet101_voc", backbone="resnet50_v1_beta", **arg)
