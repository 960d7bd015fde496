"""LR-ASPP with MobileNetV3 on Cityscapes, as research/deeplab trains it from random weights (arXiv 1905.02244).

    deeplab-jax data prepare cityscapes --source cityscapes --data-dir data
    deeplab-jax train --config lraspp_mobilenet_v3_cityscapes --config.data.data_dir=data --workdir runs/lraspp

research/deeplab does not state how long it trains this network; the 90,000 steps are those of its other networks.
Published: mean IoU .7241 on val at output stride 32, .6899 for `variant=small`.

Data: Cityscapes train, val
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `variant` (`large` or `small`), `size` (of the square crop), `batch`, `steps`."""
    arg = parse_arg(arg, variant="large", size=769, batch=16, steps=90_000)
    config = load_config("deeplabv3plus_cityscapes", size=arg.size, batch=arg.batch, steps=arg.steps)
    config.model.head = "lraspp"
    config.model.multi_grid = ()
    config.model.aspp_dropout = 0.0
    config.model.backbone = f"mobilenet_v3_{arg.variant}_seg"
    config.model.output_stride = 32
    config.model.aspp_channels = 128
    config.model.lraspp_gate = "hard_sigmoid"
    config.model.image_pooling_window = (769, 769)
    config.model.image_pooling_stride = (4, 5)
    config.model.backbone_norm_epsilon = 1e-3
    config.model.backbone_norm_decay = 0.997
    config.model.padding = "same_upper"
    config.optimizer.weight_decay = 4e-5
    return config
