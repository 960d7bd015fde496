"""Fine-tunes the network that ships with the package on the classes of your own photos.

    deeplab-jax data prepare folder --source photos --data-dir data
    deeplab-jax train --config finetune_folder --config.data.data_dir=data --workdir runs/photos

The folder has `images/`, `masks/` and `classes.txt`. `:init=` starts from another preset, folder or workdir, whose
network is then trained. A new classifier is initialized if the classes differ; if `init` is only a backbone, such as
`resnet50_imagenet1k_v2`, the rest of the network is new as well: SegFormer's head for a Mix Transformer, which trains
with AdamW, and DeepLabv3+ for the others.

Data: a folder of yours
Score: not run on real photos: it depends on yours (notebooks/02_your_own_photos.ipynb runs it on drawn ones)
"""

from deeplab_jax import pretrained
from deeplab_jax.config import base_config, parse_arg
from deeplab_jax.errors import UserError

_DEEPLAB = {"output_stride": 16, "aspp_separable": True, "decoder": "separable", "aspp_dropout": 0.1}
_SEGFORMER = {"head": "segformer", "output_stride": 32, "classifier_dropout": 0.1}


def get_config(arg=None):
    """Arguments: `size` (of the crop), `batch`, `epochs`, `rate` (peak; 0: by the network), `init` (a network)."""
    arg = parse_arg(arg, size=321, batch=4, epochs=30.0, rate=0.0, init=pretrained.DEFAULT_PRESET)
    if not arg.init:
        raise UserError(
            "init is empty, but fine-tuning starts from a network; to start from random weights, use another config, "
            "such as segformer_camvid with --config.data.name=folder"
        )
    config = base_config()

    fields = pretrained.model_fields(arg.init)
    is_transformer = fields["backbone"].startswith("mit_")
    config.model.update((_SEGFORMER if is_transformer else _DEEPLAB) | fields)
    config.model.zero_unreached_taps = not is_transformer
    config.train.init_from = arg.init

    config.data.name = "folder"
    config.data.image_size = (arg.size, arg.size)
    config.data.batch_size = arg.batch
    config.data.resize = "scale_crop"
    config.data.random_flip = "horizontal"

    config.train.duration = f"{arg.epochs:g} epochs"
    config.optimizer.learning_rate = arg.rate or (2e-4 if is_transformer else 0.02)
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5%"
    config.optimizer.weight_decay = 1e-4
    if is_transformer:
        config.optimizer.name = "adam"  # AdamW
        config.optimizer.weight_decay = 0.01
        config.optimizer.weight_decay_rule = "decoupled_kernels"
    config.optimizer.clip = "global"
    config.optimizer.clip_norm = 10.0
    config.optimizer.learning_rate_multipliers.backbone = 0.3

    config.eval.protocol = "whole"
    config.eval.batch_size = 1
    config.eval.every = "20%"
    config.eval.before_training = True
    config.checkpoint.every = "20%"
    config.checkpoint.use = "best"
    return config
