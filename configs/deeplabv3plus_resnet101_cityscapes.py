"""DeepLabv3+ with ResNet-101 on whole Cityscapes images of 1024x2048, their rows split over four devices.

    deeplab-jax data prepare cityscapes --source cityscapes --data-dir data
    deeplab-jax train --config deeplabv3plus_resnet101_cityscapes --config.data.data_dir=data --workdir runs/cityscapes

The papers train on crops of 769x769 (arXiv 1802.02611, section 4.4); this is for devices that cannot hold a whole
image, see docs/pods.md. The source folder has `leftImg8bit/` and `gtFine/`, as the archives unpack. Network, optimizer
and augmentation are those of `deeplabv3plus_resnet101_voc`; the 90,000 steps are those of research/deeplab.

Data: Cityscapes train, val
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `batch`, `steps`, `spatial` (devices that share an image)."""
    arg = parse_arg(arg, batch=16, steps=90_000, spatial=4)
    config = load_config("deeplabv3plus_resnet101_voc", batch=arg.batch, steps=arg.steps)
    config.model.align_corners = False  # it needs heights of k * 16 + 1, whose rows do not divide
    config.data.name = "cityscapes"
    config.data.train_split = "train"
    config.data.image_size = (1024, 2048)
    config.eval.image_size = (1024, 2048)
    config.train.compute_dtype = "bfloat16"
    config.mesh.spatial = arg.spatial
    return config
