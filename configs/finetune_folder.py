"""DeepLabv3+ on your own photos: a folder with images/, masks/ and classes.txt.

    deeplab-jax data prepare folder --source photos --data-dir data
    deeplab-jax train --config finetune_folder --config.data.data_dir=data --workdir runs/photos

`--config.train.init_from=resnet50_imagenet1k_v2` starts from torchvision's ImageNet weights (`deeplab-jax presets`
lists others); a folder or a workdir in its place from another network, of which only the classifier begins anew if
the classes differ. What it reaches depends on your photos; it was run here on none.
"""

from deeplab_jax.config import base_config, parse_arg


def get_config(arg=None):
    """Arguments: `size` (of the square crop), `batch`, `epochs`, `backbone`, `rate` (peak learning rate)."""
    arg = parse_arg(arg, size=321, batch=4, epochs=30.0, backbone="resnet50_v1", rate=0.005)
    config = base_config()

    config.model.backbone = arg.backbone
    config.model.output_stride = 16
    config.model.aspp_separable = True
    config.model.decoder = "separable"
    config.model.aspp_dropout = 0.1

    config.data.name = "folder"
    config.data.image_size = (arg.size, arg.size)
    config.data.batch_size = arg.batch
    config.data.resize = "scale_crop"
    config.data.random_flip = "horizontal"

    config.train.epochs = arg.epochs
    config.optimizer.learning_rate = arg.rate
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_percent = 5.0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip = "global"
    config.optimizer.clip_norm = 10.0
    config.optimizer.learning_rate_multipliers.backbone = 0.3

    config.eval.protocol = "whole"
    config.eval.batch_size = 1
    config.eval.every_percent = 20.0
    config.checkpoint.every_percent = 20.0
    return config
